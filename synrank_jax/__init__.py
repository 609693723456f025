"""Train dense retrievers on lists of documents with several levels of relevance.

Importing the package touches no device and imports no heavy library.
"""

__version__ = "0.1.0"
