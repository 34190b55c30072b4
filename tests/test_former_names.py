"""Names that earlier versions documented."""


def test_the_callback_is_still_found_in_its_former_home():
    from diffstride_hybrid.callbacks import CropRefresh, refresh_crops

    import diffstride_hybrid

    assert CropRefresh is diffstride_hybrid.CropRefresh
    assert refresh_crops is diffstride_hybrid.refresh_crops
