import pytest
from em_models import Geometry


def geometry(trimmed):
    return Geometry(pitch=4, receptive_field=76, trimmed=trimmed, position_free=True, reason="")


@pytest.mark.parametrize("trimmed", [0, 40, 75])
def test_codes_fit_the_crops_that_are_made_for_them(trimmed):
    codes = geometry(trimmed)
    for number in (1, 2, 19):
        size = codes.crop_size(number)
        assert [codes.codes(n) for n in (size - 1, size, size + 3, size + 4)] == [
            number - 1,
            number,
            number,
            number + 1,
        ]
        assert codes.codes(size, 1) == 4 * (number - 1) + 1


def test_even_fields_are_trimmed_one_pixel_more_behind():
    assert geometry(75).margin == 37


def test_a_crop_without_a_code_is_refused():
    geometry(75).check((76, 76))
    with pytest.raises(ValueError, match=r"\(75, 90\) px is smaller than .* 76 px"):
        geometry(75).check((75, 90))
