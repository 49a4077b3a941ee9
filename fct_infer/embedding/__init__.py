"""From images to a gallery: finding, decoding and preparing them, and the loop that embeds and writes."""

from fct_infer.embedding.embed_gallery import EmbedReport, OnError, embed_gallery
from fct_infer.embedding.images import ImageSource, open_images

__all__ = ["EmbedReport", "ImageSource", "OnError", "embed_gallery", "open_images"]
