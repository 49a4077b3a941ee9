"""Published galleries in use: opened, searched by their index or exactly, and what they were before."""

from fct_infer.serving.published import PublishedGallery, open_gallery
from fct_infer.serving.search import ExactSearch

__all__ = ["ExactSearch", "PublishedGallery", "open_gallery"]
