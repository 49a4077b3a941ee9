"""A LlamaIndex retriever over a gallery that fct-upgrade-gallery published.

    pip install 'fct-infer[cpu]' llama-index-core

    retriever = GalleryRetriever(fct_infer.open_gallery("DEST"), new_model, texts_by_id)
    retriever.retrieve("a question")
    RetrieverQueryEngine.from_args(retriever, llm=...).query("a question")

The gallery holds vectors and ids; the texts stay where they are, and are looked up by id. Queries are embedded by the
new model. It needs llama-index-core's public interfaces alone: an example to copy, not a part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from fct_infer import PublishedGallery


class GalleryRetriever(BaseRetriever):
    """Finds the texts whose rows of the gallery are nearest to a question.

    Args:
        gallery: what ``fct_infer.open_gallery`` opened.
        embeddings: the new model.
        texts: id of a row -> its text; anything with ``[]`` and ``in``, such as a database behind a mapping.
        k: texts wanted.
    """

    def __init__(
        self, gallery: PublishedGallery, embeddings: BaseEmbedding, texts: Mapping[Any, str], k: int = 4
    ) -> None:
        super().__init__()
        self._gallery, self._embeddings, self._texts, self._k = gallery, embeddings, texts, k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding or self._embeddings.get_query_embedding(query_bundle.query_str)
        distances, ids = self._gallery.search(np.array([vector], np.float32), self._k)
        # Post-processors keep what scores high: a distance counts against, an inner product or a cosine for.
        sign = -1 if self._gallery.manifest.metric == "l2" else 1
        return [
            NodeWithScore(node=TextNode(text=self._texts[name], id_=str(name)), score=sign * distance)
            for distance, name in zip(distances[0].tolist(), ids[0].tolist(), strict=True)
            if name in self._texts  # not those deleted since, nor -1 or "": nothing found
        ]
