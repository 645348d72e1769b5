"""The front door of Outpost and every decision about a request."""

__version__ = "0.1.0"
