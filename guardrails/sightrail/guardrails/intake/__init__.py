"""Intake: any carrier of a picture becomes the pixels that are screened and travel on."""

from .limits import Limits
from .pictures import Picture, PictureSource, read_picture

__all__ = ["Limits", "Picture", "PictureSource", "read_picture"]
