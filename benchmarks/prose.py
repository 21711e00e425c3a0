"""Find English that a native engineer would not write.

It reads documents (without code), docstrings, comments, messages, and the help of `make`. It leaves out tests.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import io
from pathlib import Path
import re
import subprocess
import tokenize

CODE_FOLDERS = ("realman", "third_party/openpi", "examples", "benchmarks", "patches")
SKIPPED = ("benchmarks/prose.py", "tests/test_language.py")

BANNED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\b(tells?|told|telling)\b": "report, say, show",
    r"\b(go|goes|going|went) on\b": "continue, resume",
    r"\bbesides?\b": "next to, compared with, in addition to",
    r"\b(one|two|three|four|\d+) an? (line|row|second|minute|hour|frame|step|tick|episode|camera|config|name|image|file)\b": "per",
    r"\bpictures?\b": "image",
    r"(?<!there )\b(is|are) no (?!longer|more|less|fewer|better|worse|other|need|such|matter|reason|use|way)[a-z]+\b": "is not a",
    r"\bheed(s|ed|ing)?\b": "support, follow",
    r"\bwhatever\b": "any, every",
    r"\bwhoever\b": "the caller",
    r"\bsee to it\b": "make sure",
    r"\b(is|are|was|were|be) looked at\b": "is checked",
    r"\b(as|than) it was\b then": "as before",
    r"\bof then\b": "recorded",
    r"\bis to go on\b": "continues",
    r"\bmake place\b": "are deleted",
    r"\b(normalis|optimis|initialis|serialis|quantis|recognis|organis|summaris|synchronis|visualis|minimis|maximis|tokenis|parametris|vectoris|randomis|generalis|customis)\w*": "American spelling: -iz-",
    r"\b(colour|behaviour|neighbour|favour|honour)\w*": "American spelling: -or",
    r"\b(centre|metre|millimetre|kilometre|litre)s?\b": "American spelling: -er",
    r"\b(licence|grey|catalogue|artefact|cancelled|labelled|travelled|modelling|analyse|whilst)\w*": "American spelling",
}
_BANNED = re.compile("|".join(f"(?:{pattern})" for pattern in BANNED), re.IGNORECASE)
# Between two clauses: a word, then a space and another word. CSS, HTML entities and shell commands do not look so.
_SEMICOLON = re.compile(r"[\w)\]'\"`%*]; +[\w`'\"(*{]")
_MARKUP = re.compile(r"</?\w+|&\w+;|charset=|[\w-]+:\s*[^;{}]{1,40};\s*[\w-]+:|\bimport \w+|\bset -e")
MAX_WORDS = 12


@dataclasses.dataclass(frozen=True)
class Text:
    """A piece of prose and where it is."""

    file: str
    line: int
    kind: str
    text: str


def tracked(root: Path) -> list[Path]:
    """Return the files of the tree, without installed and generated ones."""
    # An unpacked archive has nothing but the tree in it.
    if not (root / ".git").exists():
        return sorted(path for path in root.rglob("*") if path.is_file())
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    paths = (root / name for name in listing.stdout.splitlines())
    return sorted(path for path in paths if path.is_file())


def texts(root: Path, below: str = "") -> Iterator[Text]:
    """Yield every text that a person reads, of files below a path."""
    for path in tracked(root):
        name = path.relative_to(root).as_posix()
        if name in SKIPPED or not name.startswith(below):
            continue
        if path.suffix == ".md":
            yield from _document(name, path.read_text(encoding="utf-8"))
        elif path.suffix == ".py" and name.startswith(CODE_FOLDERS):
            yield from _module(name, path.read_text(encoding="utf-8"))
        elif path.name == "Makefile" or (path.suffix in (".sh", ".toml") and not name.startswith("tests/")):
            yield from _remarks(name, path.read_text(encoding="utf-8"))


def _document(name: str, text: str) -> Iterator[Text]:
    # Code is taken out and its lines are kept, so that line numbers stay true.
    text = re.sub(r"^```.*?^```", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "`x`", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield Text(name, number, "document", line)


def _remarks(name: str, text: str) -> Iterator[Text]:
    for number, line in enumerate(text.splitlines(), 1):
        if "#" in line:
            yield Text(name, number, "comment", line[line.index("#") :])


def _module(name: str, source: str) -> Iterator[Text]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(r"# (noqa|type:|fmt:)", token.string):
            yield Text(name, token.start[0], "comment", token.string)
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            kind = "docstring" if id(node) in documentation else "message"
            if kind == "docstring" or (" " in node.value.strip() and not _MARKUP.search(node.value)):
                # Names and samples of code in backticks are not prose.
                plain = re.sub(r"`[^`\n]*`", "`x`", node.value)
                for offset, line in enumerate(plain.splitlines()):
                    yield Text(name, node.lineno + offset, kind, line)


def banned_phrases(root: Path) -> list[str]:
    """Places with a banned phrase, each with what to write instead."""
    return _banned_phrases(texts(root))


def _banned_phrases(found_texts: Iterable[Text]) -> list[str]:
    found = []
    for text in found_texts:
        for match in _BANNED.finditer(text.text):
            better = next(b for p, b in BANNED.items() if re.match(p, text.text[match.start() :], re.IGNORECASE))
            found.append(f"{text.file}:{text.line}: '{match.group()}' in a {text.kind}; write: {better}")
    return found


def semicolons(root: Path) -> list[str]:
    """Places where a semicolon joins two clauses."""
    return _semicolons(texts(root))


def _semicolons(found_texts: Iterable[Text]) -> list[str]:
    return [
        f"{text.file}:{text.line}: semicolon in a {text.kind}: {text.text.strip()[:100]}"
        for text in found_texts
        for _ in _SEMICOLON.finditer(text.text)
    ]


def _sentences(root: Path) -> list[str]:
    lines = [text.text for text in texts(root) if text.kind == "document"]
    return [s for s in re.split(r"(?<=[.!?:])\s+|\n", "\n".join(lines)) if len(s.split()) > 2]


def semicolons_per_100_sentences(root: Path) -> float:
    """Semicolons in the documents per 100 of their sentences."""
    sentences = _sentences(root)
    return 100 * sum(len(_SEMICOLON.findall(s)) for s in sentences) / max(len(sentences), 1)


def sentences_with_you(root: Path) -> tuple[int, int]:
    """Sentences of the documents that address the reader, and all of them."""
    sentences = _sentences(root)
    return sum(bool(re.search(r"\byour?s?\b", s, re.IGNORECASE)) for s in sentences), len(sentences)


def _docstrings(root: Path, below: str = "") -> Iterator[tuple[str, int, str]]:
    for path in tracked(root):
        name = path.relative_to(root).as_posix()
        if path.suffix == ".py" and name.startswith(CODE_FOLDERS) and name.startswith(below):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    docstring = ast.get_docstring(node)
                    if docstring:
                        yield name, getattr(node, "lineno", 1), docstring.splitlines()[0]


def has_semicolon(line: str) -> bool:
    """Whether a docstring's first line holds a semicolon."""
    return ";" in line


def is_long(line: str) -> bool:
    """Whether a docstring's first line has more than 12 words."""
    return len(line.split()) > MAX_WORDS


def first_lines(root: Path, is_bad: Callable[[str], bool]) -> tuple[int, int]:
    """How many docstring first lines are bad, and how many there are."""
    lines = [line for _, _, line in _docstrings(root)]
    return sum(map(is_bad, lines)), len(lines)


def findings(root: Path, below: str = "") -> Iterator[str]:
    """Every place to fix, one per line."""
    found_texts = list(texts(root, below))
    yield from _banned_phrases(found_texts)
    yield from _semicolons(found_texts)
    for file, line, text in _docstrings(root, below):
        if has_semicolon(text) or is_long(text):
            yield f"{file}:{line}: first line of the docstring is too long or has a semicolon: {text}"
