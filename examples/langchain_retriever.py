"""A LangChain retriever over a gallery that fct-upgrade-gallery published.

    pip install 'fct-infer[cpu]' langchain-core

    retriever = GalleryRetriever(gallery=fct_infer.open_gallery("DEST"), embeddings=new_model, texts=texts_by_id)
    retriever.invoke("a question")

The gallery holds vectors and ids; the texts stay where they are, and are looked up by id. Queries are embedded by the
new model. It needs langchain-core's public interfaces alone: an example to copy, not a part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

from fct_infer import PublishedGallery


class GalleryRetriever(BaseRetriever):
    """Finds the texts whose rows of the gallery are nearest to a question.

    Attributes:
        gallery: what ``fct_infer.open_gallery`` opened.
        embeddings: the new model.
        texts: id of a row -> its text; anything with ``[]`` and ``in``, such as a database behind a mapping.
        k: texts wanted.
    """

    gallery: PublishedGallery
    embeddings: Embeddings
    texts: Mapping[Any, str]
    k: int = 4
    model_config = {"arbitrary_types_allowed": True}  # noqa: RUF012 - pydantic's

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        vector = np.array([self.embeddings.embed_query(query)], np.float32)
        distances, ids = self.gallery.search(vector, self.k)
        found = zip(distances[0].tolist(), ids[0].tolist(), strict=True)
        return [
            Document(page_content=self.texts[name], id=str(name), metadata={"distance": distance})
            for distance, name in found
            if name in self.texts  # not those deleted since, nor -1 or "": nothing found
        ]
