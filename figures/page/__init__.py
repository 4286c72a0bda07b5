"""A report as one HTML file that needs nothing else: no network, no script, no file beside it."""

from .page import Code, Facts, Page, Part, Picture, Progress, Section, Table, Text, picture

__all__ = ["Code", "Facts", "Page", "Part", "Picture", "Progress", "Section", "Table", "Text", "picture"]
