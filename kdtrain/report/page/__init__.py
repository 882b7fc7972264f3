"""``report.html``: a comparison as one page."""

from kdtrain.report.page.render import write_report

__all__ = ["write_report"]
