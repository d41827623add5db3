//! The end of a container's output, out of the file that Docker's `json-file` driver writes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Deserialize;

/// How many bytes of the file are read. A line of the file is longer than the output in it, by its frame of a hundred
/// bytes and by escapes, so this is enough for a kilobyte of output in most cases.
const WINDOW: usize = 64 * 1024;
/// How many where that was not enough. A line holds 16 KiB of output at most, each byte as an escape of six at most;
/// behind the last such line there may be a kilobyte of lines of one byte each.
const LARGEST_WINDOW: usize = 256 * 1024;

/// One line of the file.
#[derive(Deserialize)]
struct Line {
    log: String,
}

/// The last of the output, at most `limit` bytes of whole characters; empty when there is none.
pub(crate) fn tail(path: &str, limit: usize) -> String {
    if path.is_empty() {
        return String::new();
    }
    let mut text = String::new();
    for window in [WINDOW, LARGEST_WINDOW] {
        let Ok((bytes, is_whole)) = read_end(path, window) else {
            break;
        };
        text = output(&bytes, is_whole, limit);
        // A character at the beginning may have been left out.
        if is_whole || text.len() + 4 > limit {
            break;
        }
    }
    text
}

/// The last bytes of a file, and whether that is all of it.
fn read_end(path: &str, length: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let start = size.saturating_sub(length as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok((bytes, start == 0))
}

fn output(bytes: &[u8], is_whole: bool, limit: usize) -> String {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    if !is_whole {
        // It begins somewhere.
        lines.next();
    }
    let text: String = lines
        .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
        .map(|line| line.log)
        .collect();
    let start = text.len().saturating_sub(limit);
    let start = (start..=text.len())
        .find(|index| text.is_char_boundary(*index))
        .unwrap_or(text.len());
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_is_given_in_whole_characters() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("json.log");
        let mut text = String::new();
        for number in 0..1000 {
            text +=
                &json!({"log": format!("line {number} äöü€\n"), "stream": "stdout", "time": "2026-01-01"})
                    .to_string();
            text += "\n";
        }
        fs::write(&path, &text).expect("write");
        let path = path.to_str().expect("path");
        for limit in 1..1100 {
            let end = tail(path, limit);
            assert!(
                end.len() <= limit && end.len() + 4 > limit,
                "{limit}: {}",
                end.len()
            );
        }
        assert!(tail(path, 1024).ends_with("line 999 äöü€\n"));
    }

    #[test]
    fn the_end_of_binary_output_in_long_lines_is_given() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("json.log");
        let line = |output: &str| {
            format!(
                "{}\n",
                json!({"log": output, "stream": "stdout", "time": "2026-01-01"})
            )
        };
        // As Docker cuts output without an end of line.
        let long = line(&"\0".repeat(16 * 1024));
        assert!(long.len() > WINDOW);
        let short = line("x").repeat(500);
        for text in [format!("{long}{long}"), format!("{long}{long}{short}")] {
            fs::write(&path, &text).expect("write");
            assert_eq!(tail(path.to_str().expect("path"), 1024).len(), 1024);
        }
    }

    #[test]
    fn what_is_short_absent_or_half_written_does_no_harm() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("json.log");
        let path = path.to_str().expect("path");
        assert_eq!(tail(path, 1024), "");
        assert_eq!(tail("", 1024), "");
        fs::write(path, "{\"log\":\"a\\n\"}\n{\"log\":\"b").expect("write");
        assert_eq!(tail(path, 1024), "a\n");
    }
}
