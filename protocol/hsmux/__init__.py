"""The thin client of the hsmux gateway.

    from hsmux import Client

    with Client.connect() as client:
        sealed = client.encrypt("alias/first", b"hello")
        assert client.decrypt(sealed.ciphertext).plaintext == b"hello"

`Client` blocks and is thread-safe; `TrioClient` has the same methods to await. Importing this
package loads neither Trio nor anything of the gateway.
"""
