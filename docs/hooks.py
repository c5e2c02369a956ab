"""What the site has beside the pages of this folder: the project's own pages, and the API.

MkDocs calls the functions by their names (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

import ast
import re
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent

PROJECT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages of the checkout's root, and what they are called in the site."""

# what a page has a browser fetch by itself; links, which a reader may follow, are not among it
_FETCHED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]+"
    r"|<link\b(?![^>]*rel=\"canonical\")[^>]*\bhref=\"(?:https?:)?//[^\"]+"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the modules behind the reference."""
    modules = ["api/modules.md", *(f"api/{name}.md" for name in _modules())]
    (reference,) = (part["Reference"] for part in config.nav or () if "Reference" in part)
    reference += [{"API": "api/index.md"}, {"Modules": modules}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the project's pages and a page per module."""
    for source, place in PROJECT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_as_in_docs(text)))
    files.append(File.generated(config, "api/index.md", content=_public()))
    files.append(File.generated(config, "api/modules.md", content=_overview()))
    public = _homes()
    for name, file in _modules().items():
        content = f"---\ntitle: mixmfl.{name}\n---\n::: mixmfl.{name}\n"
        if file.stem == "__init__":  # what a package exports is documented where it is defined
            content += "    options: {members: false}\n"
        elif names := [each for each, home in public.items() if home == f"mixmfl.{name}"]:
            # these are on the page of what is public; a name has one place in the site
            content += f'    options: {{filters: ["!^_[^_]", "!^({"|".join(names)})$"]}}\n'
        files.append(File.generated(config, f"api/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let links to the checkout's root lead to the pages that it has here."""
    for source, place in PROJECT.items():
        markdown = markdown.replace(f"](../{source}", f"]({place}")
    # code is not part of the site, but of the API where it is a module
    for name, file in _modules().items():
        source = file.relative_to(ROOT).as_posix()
        for link in (f"](../{source})", f"]({source})"):
            markdown = markdown.replace(link, f"](api/{name}.md)")
    return markdown


def on_post_page(output: str, **_: object) -> str:
    """Check that a page fetches nothing from elsewhere.

    Raises:
        PluginError: It does.
    """
    if found := _FETCHED.findall(output):
        raise PluginError(f"the page would fetch from elsewhere: {found}")
    return output


def _as_in_docs(text: str) -> str:
    """Return a page of the root with links as from ``docs/``."""
    text = re.sub(r"(\]\(|src=\")docs/", r"\1", text)
    for source, place in PROJECT.items():
        text = text.replace(f"]({source}", f"]({place}")
    text = text.replace("](LICENSE)", "](https://www.apache.org/licenses/LICENSE-2.0)")
    return text.replace("[CITATION.cff](CITATION.cff)", "`CITATION.cff`")


@cache
def _modules() -> dict[str, Path]:
    """Return the files of all modules and packages, by what follows ``mixmfl.``."""
    root = ROOT / "mixmfl"
    rooms = [file for file in root.rglob("__init__.py") if file.parent != root]
    files = [*root.rglob("[!_]*.py"), *rooms]
    names = sorted(file.relative_to(root).as_posix() for file in files)
    return {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): root / name
        for name in names
    }


def _homes() -> dict[str, str]:
    """Return the modules of the names that ``mixmfl`` itself exports."""
    tree = ast.parse((ROOT / "mixmfl" / "__init__.py").read_text(encoding="utf-8"))
    homes = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mixmfl.")
        for alias in node.names
    }
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {name: homes[name] for name in names if name != "__version__"}


def _public() -> str:
    """Return the page of what is public."""
    parts = [f"## mixmfl.{name}\n\n::: {home}.{name}\n" for name, home in _homes().items()]
    return "# API\n\nWhat `import mixmfl` offers, beside its `__version__`.\n\n" + "\n".join(parts)


def _overview() -> str:
    """Return the list of modules with the first line of what each says of itself."""
    lines = [
        "# Modules",
        "",
        "For readers of the code; [API](index.md) has what is public.",
        "",
        "| module | what |",
        "| --- | --- |",
    ]
    for name, file in _modules().items():
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| [mixmfl.{name}]({name}.md) | {first} |")
    return "\n".join(lines) + "\n"
