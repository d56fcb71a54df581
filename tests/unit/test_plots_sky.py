"""Pictures of the sky."""

from chunkcal.image import measure
from chunkcal.plots.sky import draw_sky
from sky_image import write_image


def test_the_picture_shows_every_image_in_both_themes(tmp_path):
    names = [f"{when}-{kind}.fits" for when in ("before", "after") for kind in ("dirty", "clean")]
    paths = [write_image(tmp_path / name, peak=i + 1.0, seed=i) for i, name in enumerate(names)]
    four = draw_sky([(name, path, measure(path)) for name, path in zip(names, paths, strict=True)])
    two = draw_sky([(name, path, measure(path)) for name, path in zip(names[:2], paths[:2], strict=True)])
    assert four.height > 1.8 * two.height
    assert four.light != four.dark
    assert four.light == draw_sky([(n, p, measure(p)) for n, p in zip(names, paths, strict=True)]).light
