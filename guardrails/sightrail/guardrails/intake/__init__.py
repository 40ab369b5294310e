"""Intake: any carrier of a picture becomes the pixels that are screened and travel on."""

from .limits import Limits
from .pictures import Picture, PictureSource, read_picture
from .reader import RequestReader
from .remote import RemotePolicy

__all__ = ["Limits", "Picture", "PictureSource", "RemotePolicy", "RequestReader", "read_picture"]
