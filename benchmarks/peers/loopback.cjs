// Keeps a Node.js peer that offers no host option on the loopback interface (node -r loopback.cjs …).
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  if (typeof args[0] === "number") {
    const callback = args.find((each) => typeof each === "function");
    return listen.call(this, { port: args[0], host: "127.0.0.1" }, callback);
  }
  if (args[0] && typeof args[0] === "object" && "port" in args[0]) {
    args[0] = { ...args[0], host: "127.0.0.1" };
  }
  return listen.apply(this, args);
};
