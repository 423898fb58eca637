"""Files: written whole or not at all, and read with a clear sentence for each fault.

Everything that is written and trusted later goes through `whole_file` or `whole_folder`; every text
and JSON file from outside through `read_text`, `read_json` or `read_json_lines`. A path may be that
of a bucket (see `paths`), so modules turn arguments into paths with `as_path`.
"""

from spirit_jax.files.growing import GrowingFile, Upload
from spirit_jax.files.paths import (
    BucketPath,
    as_path,
    copy_file,
    copy_tree,
    is_bucket,
    is_file,
    is_folder,
    join,
    local_copy,
    open_binary,
    remove_tree,
    walk,
    without_dots,
)
from spirit_jax.files.reading import (
    MAX_CONFIG_DIGITS,
    MAX_DIGITS,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_json_objects,
    read_text,
)
from spirit_jax.files.resources import (
    LFS_POINTER,
    UNFINISHED,
    describe,
    find_resource_error,
    unreadable,
    unwritable,
)
from spirit_jax.files.writing import (
    format_json,
    refuse_existing,
    refuse_unfinished,
    require_folder,
    upload_folder,
    whole_file,
    whole_folder,
    write_json,
    write_json_lines,
    write_text,
)

__all__ = [
    "LFS_POINTER",
    "MAX_CONFIG_DIGITS",
    "MAX_DIGITS",
    "UNFINISHED",
    "BucketPath",
    "GrowingFile",
    "Upload",
    "as_path",
    "copy_file",
    "copy_tree",
    "describe",
    "find_resource_error",
    "format_json",
    "is_bucket",
    "is_file",
    "is_folder",
    "join",
    "local_copy",
    "open_binary",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_json_objects",
    "read_text",
    "refuse_existing",
    "refuse_unfinished",
    "remove_tree",
    "require_folder",
    "unreadable",
    "unwritable",
    "upload_folder",
    "walk",
    "whole_file",
    "whole_folder",
    "without_dots",
    "write_json",
    "write_json_lines",
    "write_text",
]
