"""FAISS: build, checked save and load, recall."""
