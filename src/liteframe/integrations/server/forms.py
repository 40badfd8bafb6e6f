"""A multipart form with one file, written to disk as it arrives."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from liteframe.integrations.server.faults import ApiError
from liteframe.integrations.server.media import Receiver

_MOST_PARTS = 16
_MOST_FIELD_BYTES = 4096
# Beside the file itself.
FORM_BYTES = 64 * 1024


class UploadForm:
    """Reads a form piece by piece; what is in its part ``file`` goes to `receiver`.

    Args:
        content_type: the request's header.

    Attributes:
        fields: the other parts, as text.
        file_name: the last part of the file's name as the client told it; None before there is a file.

    Raises:
        ApiError: 400 for what is no such form.
    """

    def __init__(self, content_type: str, receiver: Receiver) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _bad_form("send multipart/form-data with a part named file")
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None
        self._receiver = receiver
        self._header = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._value = b""
        self._num_parts = 0
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._add_header(data[start:end], b""),
                    "on_header_value": lambda data, start, end: self._add_header(b"", data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": lambda data, start, end: self._add(data[start:end]),
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )
        except FormParserError:
            raise _bad_form("its boundary cannot be used") from None

    def write(self, data: bytes) -> None:
        """Take the next piece of the body. Raises ApiError; see `Receiver.write` as well."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise _bad_form("it is not a well-formed multipart body") from None

    def finish(self) -> str:
        """The file's name, once the body has ended. Raises ApiError for a form that is not whole or without a file."""
        if not self._is_whole:
            raise _bad_form("it breaks off before its end")
        if self.file_name is None:
            raise ApiError(400, "missing_file", "the form has no part named file", param="file")
        return self.file_name

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > _MOST_PARTS:
            raise _bad_form(f"it has more than {_MOST_PARTS} parts")
        self._headers, self._field, self._value = {}, None, b""

    def _add_header(self, name: bytes, value: bytes) -> None:
        self._header = self._header[0] + name, self._header[1] + value

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._field = options.get(b"name", b"").decode(errors="replace")
        if self._field == "file":
            if self.file_name is not None:
                raise _bad_form("it has more than one file; send them one by one")
            name = options.get(b"filename", b"").decode(errors="replace")
            self.file_name = name.replace("\\", "/").rsplit("/", 1)[-1][-200:] or "video"

    def _add(self, data: bytes) -> None:
        if self._field == "file":
            self._receiver.write(data)
        elif len(self._value) + len(data) > _MOST_FIELD_BYTES:
            raise _bad_form("one of its fields is too long")
        else:
            self._value += data

    def _end(self) -> None:
        if self._field and self._field != "file":
            self.fields[self._field] = self._value.decode(errors="replace")

    def _finish(self) -> None:
        self._is_whole = True


def _bad_form(text: str) -> ApiError:
    return ApiError(400, "invalid_form", f"the upload cannot be read: {text}", param="file")
