"""The report as one self-contained HTML page, and as Markdown."""

from __future__ import annotations

import base64
import datetime
import html
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template

from reporting.blocks import Block, Picture, Remarks, Section
from reporting.markup import Table, to_html, to_markdown
from reporting.videos import Video

TEMPLATE = Path(__file__).with_name("page.html")
TITLE = "Atari 100k report"
GENERATOR = '<meta name="generator" content="report.py">'  # tells our pages from others


def render_page(sections: Sequence[Section]) -> str:
    """The sections, the first one above the explanations, as HTML that needs no other file."""
    summary, *others = sections
    links = [f'<a href="#{_anchor(section)}">{html.escape(section.title)}</a>' for section in sections]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=TITLE,
        generator=GENERATOR,
        navigation="".join(links),
        summary=_section_html(summary),
        sections="".join(map(_section_html, others)),
        date=datetime.date.today().isoformat(),
    )


def _anchor(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")


def _section_html(section: Section) -> str:
    text = f"<p>{html.escape(section.explanation)}</p>" if section.explanation else ""
    body = "".join(
        _blocks_html(list(group), in_gallery)
        for in_gallery, group in itertools.groupby(section.blocks, key=_belongs_in_gallery)
    )
    return f'<section><h2 id="{_anchor(section)}">{html.escape(section.title)}</h2>{text}{body}</section>\n'


def _belongs_in_gallery(block: Block) -> bool:
    return isinstance(block, Video) or (isinstance(block, Picture) and block.small)


def _blocks_html(blocks: Sequence[Block], in_gallery: bool) -> str:
    content = "".join(map(_block_html, blocks))
    return f'<div class="gallery">{content}</div>' if in_gallery else content


def _block_html(block: Block) -> str:
    if isinstance(block, Table):
        return to_html(block)
    if isinstance(block, Remarks):
        return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in block.lines)}</ul>" * bool(
            block.lines
        )
    if isinstance(block, Video):
        return _figure(block.address, _video_caption(block), "film")
    image = base64.b64encode(block.svg.read_bytes()).decode()
    return _figure(f"data:image/svg+xml;base64,{image}", block.caption, "small" if block.small else "wide")


def _figure(address: str, caption: str, kind: str) -> str:
    text = html.escape(caption, quote=True)
    below = "" if kind == "small" else f"<figcaption>{text}</figcaption>"
    return f'<figure class="{kind}"><img src="{address}" alt="{text}">{below}</figure>'


def _video_caption(video: Video) -> str:
    return f"{video.run.game}, {video.run.label}, seed {video.run.seed}, step {video.step:,}"


def render_markdown(sections: Sequence[Section], folder: Path) -> str:
    """The sections as Markdown to lie in `folder`; figures are linked, videos stay in the page."""
    parts = [f"# {TITLE}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n")
        parts += [f"{section.explanation}\n"] if section.explanation else []
        parts += [_block_markdown(block, folder) for block in section.blocks]
    return "\n".join(parts)


def _block_markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Table):
        return to_markdown(block)
    if isinstance(block, Remarks):
        return "".join(f"- {line}\n" for line in block.lines)
    if isinstance(block, Video):
        return f"- {_video_caption(block)}: see index.html\n"
    path = Path(os.path.relpath(block.svg, folder)).as_posix()
    return f"![{block.caption}]({path})\n"
