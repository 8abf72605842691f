"""The points of a panel as one artist, each with a pen, an id and a link of its own.

A line of matplotlib for each point takes some eight times as long to make, to lay out and to draw.
"""

from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgba
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Bbox, IdentityTransform

_SIZE = 6.5
"""Of a marker, in points."""


class _Point(NamedTuple):
    at: tuple[float, float]
    marker: str
    edge: str
    face: str
    gid: str
    url: str | None


class Points(Artist):
    """Points in data coordinates, drawn in the order in which they were added."""

    def __init__(self) -> None:
        """Begin without any."""
        super().__init__()
        self._points: list[_Point] = []
        self.set_zorder(4.1)  # over the labels of contours

    def add(self, at: tuple[float, float], *, marker: str, edge: str, face: str, gid: str, url: str | None) -> None:
        """Add a point, and widen its panel to it where that follows what is drawn."""
        self._points.append(_Point(at, marker, edge, face, gid, url))
        if self.axes is not None and not _is_within(self.axes.dataLim, *at):
            self.axes.update_datalim([at])
            self.axes.autoscale(None)  # type: ignore[arg-type] # the stubs of matplotlib lack None: as it is set

    def draw(self, renderer: RendererBase) -> None:
        """Draw each into a group of its own."""
        if not self._points or self.axes is None:
            return
        styles = {marker: MarkerStyle(marker) for marker in {point.marker for point in self._points}}
        size: Any = renderer.points_to_pixels(_SIZE)
        shapes = {marker: style.get_transform() + Affine2D().scale(size) for marker, style in styles.items()}
        places = self.axes.transData.transform([point.at for point in self._points])
        for point, place in zip(self._points, places, strict=True):
            style = styles[point.marker]
            drawn = self._context(renderer, point, style, size)
            renderer.open_group("point", point.gid)
            path, shape, face = style.get_path(), shapes[point.marker], to_rgba(point.face)
            renderer.draw_markers(drawn, path, shape, Path([place]), IdentityTransform(), face)
            renderer.close_group("point")
            drawn.restore()
        self.stale = False

    def _context(self, renderer: RendererBase, point: _Point, style: MarkerStyle, size: float) -> Any:
        drawn = renderer.new_gc()
        drawn.set_clip_rectangle(self.get_clip_box())
        drawn.set_foreground(to_rgba(point.edge), isRGBA=True)
        drawn.set_linewidth(1.0)
        drawn.set_joinstyle(style.get_joinstyle())
        drawn.set_capstyle(style.get_capstyle())
        smallest: Any = style.get_snap_threshold()
        drawn.set_snap(size >= smallest)
        drawn.set_url(point.url)
        return drawn


def _is_within(box: Bbox, x: float, y: float) -> bool:
    """Say whether a point widens no limits: neither those of the data nor, for a log scale, of what is positive."""
    is_inside = box.xmin <= x <= box.xmax and box.ymin <= y <= box.ymax
    return bool(is_inside and not 0 < x < box.minposx and not 0 < y < box.minposy)
