"""The errors of a DICOMweb service, each as one line with its cause and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import requests

from wardround_client.pacs.node import Node, PacsError

Answer = TypeVar("Answer")
_HTTP = {
    401: "the web service refuses the user, password or token (HTTP 401); check the files named in site.toml",
    403: "the web service forbids this to the user (HTTP 403); ask the administrator of the PACS",
    404: "the web service does not have what was asked for (HTTP 404); check web.url",
    429: "the web service asks for fewer requests (HTTP 429); run the same command later",
    503: "the web service is overloaded or down (HTTP 503); run the same command later",
}


class TooLongError(ValueError):
    """An answer or an object has more bytes than this side takes."""


def attempted(node: Node, work: Callable[[], Answer]) -> Answer:
    """Return what `work` returns. Errors of the connection and of HTTP become a `PacsError` with a cause."""
    try:
        return work()
    except PacsError:
        raise
    except TooLongError as error:
        raise node.error(f"{error}; ask the administrator of the PACS") from None
    except requests.HTTPError as error:
        code = 0 if error.response is None else error.response.status_code
        text = _HTTP.get(code, f"the web service answers with HTTP status {code}")
        raise (node.unreachable(text) if code in (401, 403) else node.error(text)) from None
    except requests.TooManyRedirects:
        raise node.unreachable(
            "the web service redirects to another address; enter the final address as web.url"
        ) from None
    except requests.exceptions.SSLError:
        raise node.unreachable(
            "TLS failed: the certificate of the web service is not valid for this address and web.ca_file, or it asks "
            "for a certificate of this site"
        ) from None
    except requests.Timeout:
        raise node.error(
            f"the web service has not replied within {node.config.timeout_s:g} s; run the same command to go on"
        ) from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise node.unreachable(
            "the connection to the web service failed or was lost; check web.url and the firewall, then run the same "
            "command to go on"
        ) from None
    except requests.exceptions.ContentDecodingError:
        raise node.error(
            "the web service compresses its answer although it was asked not to; switch that off for this site"
        ) from None
    except (requests.RequestException, ValueError, KeyError, TypeError):
        raise node.error("the web service answered with something that is not DICOMweb; check web.url") from None
