"""The proxy's reading of a request's head, in any pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.sandbox.egress.proxy import BadHead, ProxyRequest, RequestHead, refusal

REQUEST = (
    b"POST http://Model.test:8080/v1/messages?x=1#y HTTP/1.1\r\nHost: other.test\r\nProxy-Authorization: Basic eA==\r\n"
    b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\nContent-Length: 4\r\n\r\nbody"
)


def test_a_request_is_sent_on_as_to_its_server_and_for_one_answer() -> None:
    asked = RequestHead().feed(REQUEST)
    assert asked == ProxyRequest(
        host="model.test",
        port=8080,
        first=b"POST /v1/messages?x=1 HTTP/1.1\r\nHost: Model.test:8080\r\nX-Kept: 2\r\nContent-Length: 4\r\n"
        b"Connection: close\r\n\r\nbody",
        is_tunnel=False,
    )


def test_bytes_behind_a_tunnels_head_go_through_the_tunnel() -> None:
    asked = RequestHead().feed(b"CONNECT [::1]:8443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03")
    assert asked == ProxyRequest(host="::1", port=8443, first=b"\x16\x03", is_tunnel=True)


@given(st.lists(st.integers(0, len(REQUEST))))
def test_a_head_may_come_in_any_pieces(cuts: list[int]) -> None:
    ends = sorted({*cuts, len(REQUEST)} - {0})
    head, asked, first = RequestHead(), None, 0
    for end in ends:
        asked = head.feed(REQUEST[first:end])
        if asked is not None:
            break
        first = end
    assert asked is not None
    assert (asked.host, asked.port) == ("model.test", 8080)
    assert b"other.test" not in asked.first


@given(st.binary(min_size=1))
def test_any_head_is_understood_waited_for_or_refused(said: bytes) -> None:
    try:
        asked = RequestHead().feed(said + b"\r\n\r\n")
    except BadHead as error:
        assert refusal(error.status, "no", str(error)).startswith(b"HTTP/1.1 4")  # noqa: PT017
    else:
        assert asked is None or asked.host


def test_a_head_without_end_is_refused() -> None:
    head = RequestHead()
    for _ in range(16):
        assert head.feed(b"X: y\r\n" * 682) is None
    with pytest.raises(BadHead) as refused:
        head.feed(b"X: y\r\n" * 682)
    assert refused.value.status == 431
