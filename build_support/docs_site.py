"""MkDocs hook: pages of the site that are not files of docs/. README is its front page, the root's other pages are
copied, and each public module has one, which mkdocstrings fills from the docstrings."""

import ast
import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
COPIES = {"README.md": "index.md"} | {name: name for name in ("DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md")}
MODULES = ("datagrad_ext", "objective", "penalties", "presets", "attacks", "functional", "amp")
# Functions that share their name with a module of the package, and where they are.
HIDDEN = ("datagrad_ext.accelerate.accelerate", "datagrad_ext.table.program")
REFERENCE = "# {module}\n\n{hidden}::: {module}\n"
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, target in COPIES.items():
        files.append(File.generated(config, target, content=_relinked((ROOT / source).read_text(encoding="utf-8"))))
    for name in MODULES:
        files.append(File.generated(config, f"api/{name}.md", content=_reference(name)))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """A public name without a docstring would be left out in silence."""
    folder, _, name = page.file.src_uri.removesuffix(".md").partition("/")
    if folder == "api":
        for public in _public(name):
            if f'.{public}"' not in html:
                log.warning(f"{page.file.src_uri} lacks {public}; give it a docstring")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a file of docs/ to the root's files lead to their copies."""
    return re.sub(r"\]\(\.\./(\w+\.md)", r"](\1", markdown)


def _relinked(text: str) -> str:
    """Links of a file of the root, from where the site has it."""
    return re.sub(r"\]\(docs/", "](", text)


def _reference(name: str) -> str:
    if name != "datagrad_ext":
        return REFERENCE.format(module=f"datagrad_ext.{name}", hidden="")
    options = "    options:\n      show_root_heading: true\n      show_root_full_path: false\n\n"
    return REFERENCE.format(module=name, hidden="".join(f"::: {path}\n{options}" for path in HIDDEN))


def _public(name: str) -> list[str]:
    """What `from module import *` gives, but for modules, which have pages of their own."""
    folder = ROOT / "datagrad_ext" / ("" if name == "datagrad_ext" else name)
    source = (folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text(encoding="utf-8")
    body = ast.parse(source).body
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    lists = [ast.literal_eval(node.value) for node in assigned if ast.unparse(node.targets[0]) == "__all__"]
    functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return [each for each in (lists[0] if lists else functions) if each not in MODULES and not each.startswith("_")]
