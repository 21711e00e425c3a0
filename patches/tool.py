"""Make, check, apply and reverse the patches for the original openpi.

This needs git and Python 3.11, and no packages.

python patches/tool.py make               write the patches from the files of this tree
python patches/tool.py check              check that they are up to date and fit the original
python patches/tool.py apply CHECKOUT     apply them to a checkout
python patches/tool.py reverse CHECKOUT   take them out again
"""

import argparse
import pathlib
import sys

import check
import checkout
import render


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="write the patches from the files of this tree")
    commands.add_parser("check", help="check that they are up to date and fit the original")
    for name, summary in (("apply", "apply them to a checkout"), ("reverse", "take them out again")):
        commands.add_parser(name, help=summary).add_argument("checkout", type=pathlib.Path, metavar="CHECKOUT")
    args = parser.parse_args(arguments)
    try:
        if args.command == "make":
            message = _make()
        elif args.command == "check":
            message = _check()
        elif args.command == "apply":
            message = checkout.apply(args.checkout)
        else:
            message = checkout.reverse(args.checkout)
    except render.ToolError as e:
        sys.stderr.write(f"{e}\n")
        return 1
    sys.stdout.write(f"{message}\n")
    return 0


def _make() -> str:
    files = render.render_series()
    written = [name for name, text in files.items() if _write(render.PATCHES_DIR / name, text)]
    return f"patches: {', '.join(written)} written" if written else "patches: up to date"


def _write(path: pathlib.Path, text: str) -> bool:
    """Write a file if its text differs, and return whether it did."""
    if path.is_file() and path.read_text() == text:
        return False
    path.write_text(text)
    return True


def _check() -> str:
    problems = check.find_problems()
    if problems:
        raise render.ToolError("\n".join(problems))
    return f"patches: {len(render.SERIES)} up to date, additions only, no name that the original lacks"


if __name__ == "__main__":
    sys.exit(main())
