"""Hooks of MkDocs (mkdocs.yml): generated text, links that leave docs/, and a check of all links.

Pages in docs/ are also read where they lie, so they link to files of the checkout such as
``../CONTRIBUTING.md``, and to the notebook. On the site these links lead to the repository, and to
a page that shows the notebook.
"""

import json
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from mkdocs.structure.files import File
from reference_pages import PAGES

log = logging.getLogger("mkdocs.plugins.site_hooks")  # where a warning fails a strict build

GENERATED = re.compile(r"<!-- generated: (\w+)\b.*?-->", re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


NOTEBOOK, NOTEBOOK_PAGE = "notebook.ipynb", "notebook_page.md"


def on_files(files, config):
    """Add a page that shows the notebook with its outputs."""
    notebook = json.loads((Path(config.docs_dir) / NOTEBOOK).read_text("utf-8"))
    text = "\n\n".join(part for cell in notebook["cells"] for part in cell_parts(cell))
    files.append(File.generated(config, NOTEBOOK_PAGE, content=text))
    return files


def cell_parts(cell):
    """Yield a cell of a notebook, and what it put out, as Markdown."""
    source = "".join(cell["source"])
    yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", "")))
        if "image/png" in data:
            yield f"![{text}](data:image/png;base64,{''.join(data['image/png'].split())})"
        elif text:
            yield f"```text\n{text.rstrip()}\n```"


def on_page_markdown(markdown, page, config, files):
    """Put in what is generated, and have links to files outside docs/ lead to the repository."""
    markdown = GENERATED.sub(lambda match: PAGES[match[1]](), markdown)
    docs = Path(config.docs_dir)
    here = (docs / page.file.src_uri).parent

    def target(match):
        link = match[1]
        if link == NOTEBOOK:
            return NOTEBOOK_PAGE
        path, hash_mark, anchor = link.partition("#")
        file = (here / path).resolve()
        if urlsplit(link).scheme or not path or file.is_relative_to(docs):
            return link
        if not file.exists():
            log.warning(f"{page.file.src_uri}: there is no {path}")
        kind = "tree" if file.is_dir() else "blob"
        place = file.relative_to(docs.parent).as_posix()
        return f"{config.extra['repository']}/{kind}/HEAD/{place}{hash_mark}{anchor}"

    return LINK.sub(target, markdown)


class Page(HTMLParser):
    """The links of a page, and the names that links to it may end with."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Keep what is linked to, and what can be."""
        found = dict(attributes)
        self.names.add(found.get("id"))
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}


def on_post_build(config):
    """Warn of links that lead nowhere: files and anchors of the site; others by their form."""
    site = Path(config.site_dir)
    pages = {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        if path.name == "404.html":  # its links are those of the place where the site is served
            continue
        for link in page.links:
            if problem := _problem(link, path, pages):
                log.warning(f"{path.relative_to(site)}: {problem}: {link}")


def _problem(link, path, pages):
    """Return what is wrong with a link of a page, if anything."""
    parts = urlsplit(link)
    if parts.scheme in ("data", "mailto"):
        return ""
    if parts.scheme or parts.netloc:
        fine = parts.scheme in ("http", "https") and "." in parts.netloc and " " not in link
        return "" if fine else "no address"
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    file = file / "index.html" if file.is_dir() else file
    if not file.exists():
        return "no file"
    anchor = unquote(parts.fragment)
    if anchor and file in pages and anchor not in pages[file].names:
        return "no place of that name"
    return ""
