"""The bytes behind each token id of a byte-level BPE vocabulary.

Such a vocabulary spells every byte as one printable character (GPT-2's alphabet); added tokens are
spelt as they are. Knows nothing of merges or templates.
"""

from tokenizers import Tokenizer as Backend


class TokenBytes(dict[int, bytes]):
    """Maps a token id to its exact bytes, on first use; ids outside the vocabulary have none.

    Safe to share between threads: two that miss at once compute the same bytes.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend
        self._added = {
            id_: token.content for id_, token in backend.get_added_tokens_decoder().items()
        }
        self._byte_of = _alphabet()

    def __missing__(self, token_id: int) -> bytes:
        piece = self._spell(token_id)
        self[token_id] = piece
        return piece

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode("utf-8")
        token = self._backend.id_to_token(token_id)
        if not token:
            return b""
        try:
            return bytes(map(self._byte_of.__getitem__, token))
        except KeyError:  # spelt as it is, as the library's decoder takes it
            return token.encode("utf-8")


def _alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 as itself, the 68 other bytes from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
