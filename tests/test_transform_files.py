"""Transforms in files, compared with what SimpleITK, OpenCV and scikit-image make of the same matrices and files."""

import json
import math

import numpy as np
import pytest
import torch
from kornia.geometry import warp_perspective
from scenes import draw_scene
from settings import KORNIA_ROUNDING
from skimage import transform as skimage_transform

from lms_geometry import GaussNewton, Transform, register

SIZE, DSIZE = (37, 52), (41, 33)
AFFINE = torch.tensor([[[0.8, -0.21, 3.3], [0.17, 0.9, -1.7], [0.0, 0.0, 1.0]]], dtype=torch.float64)
HOMOGRAPHY = torch.tensor([[[0.8, -0.21, 3.3], [0.17, 0.9, -1.7], [2e-3, -1e-3, 1.0]]], dtype=torch.float64)


@pytest.fixture(scope="module")
def scene():
    return draw_scene(SIZE)[:, :1].double()


def inside(warped):
    """Away from where the image ends, beyond which the libraries differ."""
    return warped > 1e-3


def test_simpleitk_resamples_by_a_written_file_as_kornia_warps_by_the_matrix(scene, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    Transform(AFFINE).save(tmp_path / "moved.tfm")
    read = sitk.ReadTransform(str(tmp_path / "moved.tfm"))
    moving = sitk.GetImageFromArray(scene[0, 0].numpy())
    reference = sitk.Image(DSIZE[1], DSIZE[0], sitk.sitkFloat64)
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, reference, read, sitk.sitkLinear, 0.0))
    ours = warp_perspective(scene, AFFINE, DSIZE)[0, 0].numpy()
    # ITK reads up to half a pixel beyond the border.
    covered = warp_perspective(torch.ones_like(scene), AFFINE, DSIZE)[0, 0].numpy() > 0.999
    assert covered.mean() > 0.3
    np.testing.assert_allclose(theirs[covered], ours[covered], atol=KORNIA_ROUNDING)


@pytest.mark.parametrize("matrix", [AFFINE, HOMOGRAPHY], ids=["affine", "homography"])
def test_opencv_and_scikit_image_take_a_loaded_matrix(scene, tmp_path, matrix):
    cv2 = pytest.importorskip("cv2")
    Transform(matrix, SIZE, DSIZE).save(tmp_path / "moved.json")
    read = Transform.load(tmp_path / "moved.json")
    assert (read.source_size, read.target_size) == (SIZE, DSIZE)
    array = read.matrix[0].numpy()
    ours = warp_perspective(scene, matrix, DSIZE)[0, 0].numpy()
    covered = warp_perspective(torch.ones_like(scene), matrix, DSIZE)[0, 0].numpy() > 0.999
    assert covered.mean() > 0.3
    by_opencv = cv2.warpPerspective(scene[0, 0].numpy(), array, DSIZE[::-1])
    np.testing.assert_allclose(by_opencv[covered], ours[covered], atol=0.02)  # it rounds to 1/32 pixel
    inverse = skimage_transform.ProjectiveTransform(array).inverse
    by_skimage = skimage_transform.warp(scene[0, 0].numpy(), inverse, output_shape=DSIZE, order=1)
    np.testing.assert_allclose(by_skimage[covered], ours[covered], atol=KORNIA_ROUNDING)


def kinds(sitk):
    affine = sitk.AffineTransform(2)
    affine.SetMatrix((1.1, 0.2, -0.15, 0.9))
    affine.SetTranslation((3.0, -4.5))
    affine.SetCenter((20.5, 11.0))
    similarity = sitk.Similarity2DTransform(1.25, 0.3, (2.0, -3.0), (9.0, 7.5))
    euler = sitk.Euler2DTransform((10.0, 4.0), -0.4, (1.5, 2.25))
    scale = sitk.ScaleTransform(2, (1.5, 0.75))
    scale.SetCenter((3.0, 5.0))
    translation = sitk.TranslationTransform(2, (2.5, -7.0))
    composite = sitk.CompositeTransform([affine, euler, scale])
    return [affine, similarity, euler, scale, translation, composite, sitk.Transform(2, sitk.sitkIdentity)]


@pytest.mark.parametrize("index", range(7))
def test_each_kind_of_transform_that_simpleitk_writes_is_read(tmp_path, index):
    sitk = pytest.importorskip("SimpleITK")
    transform = kinds(sitk)[index]
    sitk.WriteTransform(transform, str(tmp_path / "theirs.tfm"))
    points = torch.tensor([[[0.0, 0.0], [13.0, 2.5], [-4.0, 30.0]]], dtype=torch.float64)
    to_source = Transform.load(tmp_path / "theirs.tfm").inverse().points(points)[0]
    expected = [transform.TransformPoint(point) for point in points[0].tolist()]
    np.testing.assert_allclose(to_source, expected, atol=1e-9)


def test_a_registration_is_saved_for_itk_and_read_again(tmp_path):
    source = draw_scene(SIZE)
    target = warp_perspective(source, AFFINE.float(), DSIZE)
    found = register(source, target, "affine", GaussNewton(steps=3))
    found.save(tmp_path / "found.tfm")
    found.save(tmp_path / "found.json")
    for name in ("found.tfm", "found.json"):
        read = Transform.load(str(tmp_path / name))
        torch.testing.assert_close(read.matrix, found.matrix.double(), rtol=1e-6, atol=1e-5)
    assert read.target_size == DSIZE
    several = register(source, target.repeat(2, 1, 1, 1), "affine", GaussNewton(steps=1))
    with pytest.raises(ValueError, match=r"a \.tfm holds one transform, got 2: save them as \.json"):
        several.save(tmp_path / "several.tfm")


def test_what_itk_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got a homography: save it as \.json"):
        Transform(HOMOGRAPHY).save(tmp_path / "a.tfm")
    with pytest.raises(ValueError, match="matrix must be finite and invertible"):
        Transform(torch.full((1, 3, 3), math.nan)).save(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_points_move_as_the_image_does():
    points = torch.tensor([[[3.0, 4.0], [11.0, -2.5]]])
    moved = Transform(HOMOGRAPHY).points(points)
    for point, expected in zip(moved[0].tolist(), points[0].tolist(), strict=True):
        x, y, w = (HOMOGRAPHY[0] @ torch.tensor([*expected, 1.0], dtype=torch.float64)).tolist()
        assert point == pytest.approx((x / w, y / w))
    back = Transform(HOMOGRAPHY, SIZE, DSIZE).inverse()
    assert back.source_size == DSIZE
    torch.testing.assert_close(back.points(moved), points.double(), rtol=0, atol=KORNIA_ROUNDING)
    with pytest.raises(ValueError, match=r"points must have shape \(B, N, 2\)"):
        back.points(points[0])


def test_points_go_with_one_matrix_or_one_each():
    pair, points = Transform(torch.cat((AFFINE, HOMOGRAPHY))), torch.rand(3, 4, 2, dtype=torch.float64)
    both = pair.points(points[:1])
    assert torch.equal(both, torch.cat([Transform(m).points(points[:1]) for m in (AFFINE, HOMOGRAPHY)]))
    assert torch.equal(pair.points(points[:1].expand(2, -1, -1)), both)
    assert Transform(AFFINE).points(points).shape == (3, 4, 2)
    assert Transform(AFFINE).points(points[:0]).shape == (0, 4, 2)
    with pytest.raises(ValueError, match="points must have batch size 1 or matrix's 2, got 3"):
        pair.points(points)
    with pytest.raises(ValueError, match="points must be on matrix's device cpu, got meta"):
        pair.points(points[:2].to("meta"))


AFFINE_TEXT = "#Insight Transform File V1.0\n#Transform 0\nTransform: {}\nParameters: {}\nFixedParameters: {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither JSON nor a text file"),
        ("{", "neither JSON nor a text file"),
        (b"\xff\xfe\x00", "it is not text"),
        ("[1]", "an object with a member matrix"),
        ('{"matrix": [[1, 0], [0, 1]]}', r"must have shape \(3, 3\) or \(B, 3, 3\), got \(1, 2, 2\)"),
        ('{"matrix": [[1, 0, 0], [0, 1], [0]]}', "must be 3 x 3 numbers"),
        ('{"matrix": [[1, 0, 0], [0, 1, "a"], [0, 0, 1]]}', "must be 3 x 3 numbers"),
        ('{"matrix": [[1, 0, 0], [0, 1, null], [0, 0, 1]]}', "must be 3 x 3 numbers"),
        ('{"matrix": [[1, 0, 0], [0, 1, NaN], [0, 0, 1]]}', "must be finite and invertible"),
        ('{"matrix": [[1, 0, 0], [1, 0, 0], [0, 0, 1]]}', "must be finite and invertible"),
        (
            '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "matrix_convention": "corners"}',
            "matrix_convention must be .* got 'corners'",
        ),
        (
            '{"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "target_size": [3]}',
            r"target_size must be \[height, width\], got \[3\]",
        ),
        ("# something else", "the first line of an ITK transform file must be"),
        ("#Insight Transform File V1.0\n", "must hold one transform, or one composite, got 0"),
        (AFFINE_TEXT.format("AffineTransform_double_3_3", "1 " * 12, "0 0 0"), "must be of 2 dimensions"),
        (AFFINE_TEXT.format("BSplineTransform_double_2_2", "1", "0 0"), "got BSplineTransform_double_2_2"),
        (AFFINE_TEXT.format("AffineTransform_double_2_2", "1 0 0 1 x", "0 0"), "must have 6 parameters"),
        (AFFINE_TEXT.format("AffineTransform_double_2_2", "1 0 0 0 1 2", "0 0"), "cannot be inverted"),
        (AFFINE_TEXT.format("TranslationTransform_double_2_2", "nan 0", ""), "cannot be inverted"),
    ],
)
def test_a_file_that_holds_no_transform_says_why(tmp_path, text, message):
    path = tmp_path / "bad.tfm"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"bad.tfm holds no transform: .*{message}"):
        Transform.load(path)


def test_two_transforms_that_are_no_composite_are_refused(tmp_path):
    one = AFFINE_TEXT.format("TranslationTransform_double_2_2", "1 2", "")
    (tmp_path / "two.tfm").write_text(one + one.partition("\n")[2])
    with pytest.raises(ValueError, match="one composite, got 2"):
        Transform.load(tmp_path / "two.tfm")


def test_json_without_sizes_or_with_one_matrix_is_read(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"matrix": AFFINE[0].tolist()}))
    read = Transform.load(tmp_path / "one.json")
    assert torch.equal(read.matrix, AFFINE)
    assert read.source_size is None
