"""Train, pack and judge the guard models. Run as `python -m guard_models.pipeline train|eval`; see README.md."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from pathlib import Path

from appliance.guards.judge import Judge, shipped_models
from appliance.guards.manifest import write_manifest
from appliance.guards.model import GuardModel
from appliance.guards.names import GROUNDED, SHIPPED
from guard_models.pipeline import evaluate, evaluate_grounded, statements, written
from guard_models.pipeline.card import write_card

ROOT = Path(__file__).parents[2]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def train(arguments: argparse.Namespace) -> None:
    if arguments.model in ("all", SHIPPED):
        train_guard(arguments)
    if arguments.model in ("all", GROUNDED):
        made_grounded(arguments)


def made_grounded(arguments: argparse.Namespace) -> None:
    from guard_models.pipeline import pack_grounded
    from guard_models.pipeline.base import base_model

    paths = written.written(written.HERE / "written", "grounded*.txt")
    rows = [one for path in paths for one in statements.statements(path)]
    base, folder = base_model(arguments.base), arguments.output / GROUNDED
    pack_grounded.pack(rows, base, folder, version=arguments.version, seed=arguments.seed, eight_bit=True)
    pack_grounded.calibrated(folder, rows, say)
    say(f"packed {folder}")


def train_guard(arguments: argparse.Namespace) -> None:
    # Only there where models are trained.
    from appliance.guards.features import PieceTokenizer
    from guard_models.pipeline import dataset, pack, vocabulary
    from guard_models.pipeline.base import base_model
    from guard_models.pipeline.fit import Recipe
    from guard_models.pipeline.train import only
    from guard_models.pipeline.training_run import trained

    base = base_model(arguments.base)
    recipe = Recipe(seed=arguments.seed, epochs=arguments.epochs, scale=arguments.scale)
    if arguments.only:
        recipe = only(recipe, arguments.only)
    data = dataset.load(arguments.data, limit=arguments.limit)
    for reason, count in data.dropped.most_common():
        say(f"left out {count:5} {reason}")
    texts = [row.text for rows in data.train.values() for row in rows] + [row.text for row in data.payloads]
    fresh = vocabulary.write_tokenizer(base, arguments.work, texts)
    tokenizer = PieceTokenizer(arguments.work / "tokenizer.json")
    # The last of 2.2 epochs is a fifth of one.
    epochs = [
        dataset.epoch(data, number, seed=recipe.seed, scale=recipe.scale * min(1.0, recipe.epochs - number))
        for number in range(math.ceil(recipe.epochs))
    ]
    if arguments.only:
        epochs = [[row for row in rows if row.teaches(arguments.only)] for rows in epochs]
    counts = Counter(row.set for row in epochs[0])
    found = trained(epochs, tokenizer, base, recipe, arguments.work, say, fresh=fresh)
    folder = arguments.output / SHIPPED
    plain = {name: value.numpy() for name, value in found.state.items()}
    pack.pack(
        plain,
        arguments.work / "tokenizer.json",
        folder,
        name=SHIPPED,
        version=arguments.version,
        counts=counts,
        steps=found.steps,
    )
    pack.calibrated(folder, data.calibrate + dataset.calibration_documents(data), say)
    others = [row for rows in written.held().values() for row in rows[::3]]
    pack.with_agreement(folder, plain, others, say)
    say(f"packed {folder}")


def smoke(arguments: argparse.Namespace) -> None:
    from guard_models.pipeline.base import base_model
    from guard_models.pipeline.smoke import SmokeFailed, run

    try:
        run(base_model(arguments.base), arguments.data, say)
    except SmokeFailed as failure:
        sys.exit(f"guard pipeline: {failure}")
    say("the whole pipeline works")


def evaluated(arguments: argparse.Namespace) -> None:
    report = say if arguments.loud else lambda _: None
    here = [name for name in (SHIPPED, GROUNDED) if (arguments.models / name).is_dir()]
    if not here:
        sys.exit(f"guard pipeline: --models {arguments.models}: holds neither {SHIPPED} nor {GROUNDED}")
    for name in here:
        folder = arguments.models / name
        model = GuardModel(folder, threads=arguments.threads)
        if name == SHIPPED:
            lines = evaluate.table(Judge(model), written.held(), written.dev(), report)
            lines += evaluate.latency(Judge(GuardModel(folder, threads=1)))
        else:
            sets = {
                path.stem: statements.statements(path)
                for path in written.written(written.HERE / "held", "grounded*.txt")
            }
            lines = evaluate_grounded.table(model, sets)
        print(evaluate.HEADER)
        for one in lines:
            print(one, flush=True)
        if arguments.record:
            kept = {what: value for what, value in model.manifest.scores.items() if what.startswith("agreement")}
            manifest = model.manifest.model_copy(
                update={"scores": kept | evaluate.plain(lines), "sizes": evaluate.sizes(lines)}
            )
            write_manifest(folder, manifest)
            write_card(folder, manifest, evaluate.goals(lines))


def main() -> None:
    parser = argparse.ArgumentParser(prog="guard_models.pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="train, pack and calibrate")
    one.add_argument("--data", type=Path, default=written.HERE / "public", help="folder of the public sets")
    one.add_argument("--base", type=Path, default=ROOT / "build" / "guard" / "base", help="where the base model is put")
    one.add_argument(
        "--work", type=Path, default=ROOT / "build" / "guard", help="where checkpoints go; a run goes on from there"
    )
    one.add_argument("--output", type=Path, default=ROOT / "build" / "guard", help="where the folders are made")
    one.add_argument("--model", choices=["all", SHIPPED, GROUNDED], default="all")
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--epochs", type=float, default=2.2)
    one.add_argument("--scale", type=float, default=1.0, help="the share of the data that an epoch takes")
    one.add_argument(
        "--only", choices=["injection", "toxicity", "pii"], help="one head alone, to compare with the shared encoder"
    )
    one.add_argument("--limit", type=int, help="at most so many rows of each set (a smoke run)")
    one.add_argument("--version", default="1")
    one.set_defaults(run=train)
    small = commands.add_parser("smoke", help="a thousand rows through everything")
    small.add_argument("--data", type=Path, default=written.HERE / "public", help="folder of the public sets")
    small.add_argument(
        "--base", type=Path, default=ROOT / "build" / "guard" / "base", help="where the base model is put"
    )
    small.set_defaults(run=smoke)
    two = commands.add_parser("eval", help="print the table of goals for a packed model")
    two.add_argument("--models", type=Path, default=shipped_models(), help="the folder that the models are in")
    two.add_argument("--threads", type=int, default=2)
    two.add_argument("--loud", action="store_true", help="say how far it is")
    two.add_argument("--record", action="store_true", help="write the numbers into the model's manifest")
    two.set_defaults(run=evaluated)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
