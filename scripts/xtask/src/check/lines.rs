//! Lines of privileged source: `.rs`, `.S` and `.ld` in `microhypervisor/` and `iommu/`, without blank lines, comments, and
//! what is compiled for tests only.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where privileged source lives.
const FOLDERS: [&str; 2] = ["microhypervisor", "iommu"];
/// Folders and files of this name are about VT-d.
const REMAPPING: &str = "iommu";

/// Lines of privileged source below the repository's root: of VT-d, and of all else.
pub fn privileged(root: &Path) -> Result<(usize, usize)> {
    let mut files = Vec::new();
    for folder in FOLDERS {
        let folder = root.join(folder);
        if folder.is_dir() {
            collect(&folder, &mut files)?;
        }
    }
    let (mut remapping, mut rest) = (0, 0);
    let mut test_files = Vec::new();
    let mut counted = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let (code, modules) = significant(&text);
        test_files.extend(modules.iter().flat_map(|module| module_files(&file, module)));
        counted.push((file, code));
    }
    for (file, code) in counted {
        if !test_files.iter().any(|test| file.starts_with(test) || file == test.with_extension("rs")) {
            let below = file.strip_prefix(root).unwrap_or(&file).with_extension("");
            let about = below.components().any(|part| part.as_os_str() == REMAPPING);
            *(if about { &mut remapping } else { &mut rest }) += code;
        }
    }
    Ok((remapping, rest))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        // Integration tests of a crate are no part of it.
        if path.is_dir() && !path.ends_with("tests") && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| ["rs", "S", "ld"].map(OsStr::new).contains(&extension)) {
            files.push(path);
        }
    }
    Ok(())
}

/// Where the content of `mod NAME;` in a file may be, without the extension.
fn module_files(file: &Path, module: &str) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    vec![folder.join(module), file.with_extension("").join(module)]
}

/// The number of significant lines, and the names of the modules that are for tests only.
fn significant(text: &str) -> (usize, Vec<String>) {
    let code = without_comments(text);
    let mut count = 0;
    let mut modules = Vec::new();
    let mut lines = code.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if !line.starts_with("#[cfg(test)]") {
            count += usize::from(!line.is_empty());
            continue;
        }
        // The item that follows, up to its semicolon or closing brace.
        let mut depth = 0_usize;
        let mut line = line.trim_start_matches("#[cfg(test)]");
        'item: loop {
            if let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
                modules.push(name.to_string());
            }
            for character in line.chars() {
                match character {
                    '{' => depth += 1,
                    '}' => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            break 'item;
                        }
                    }
                    ';' if depth == 0 => break 'item,
                    _ => {}
                }
            }
            match lines.next() {
                Some(next) => line = next,
                None => break,
            }
        }
    }
    (count, modules)
}

/// The text with its comments gone and the insides of its literals blanked, line by line as before.
fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = if rest.starts_with(b"//") {
            rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if let Some(length) = literal(rest, at.checked_sub(1).map(|before| bytes[before])) {
            code.push('"');
            length
        } else {
            // Only ASCII matters here.
            code.push(if rest[0].is_ascii() { rest[0] as char } else { '?' });
            at += 1;
            continue;
        };
        code.extend(rest[..length].iter().filter(|&&byte| byte == b'\n').map(|_| "\n"));
        at += length;
    }
    code
}

fn block_comment(text: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of a string or character literal at the start of `text`, if there is one.
fn literal(text: &[u8], before: Option<u8>) -> Option<usize> {
    let closed_by = |quote: u8, from: usize| {
        let mut at = from;
        while at < text.len() && text[at] != quote {
            at += if text[at] == b'\\' { 2 } else { 1 };
        }
        (at + 1).min(text.len())
    };
    match text[0] {
        b'"' => Some(closed_by(b'"', 1)),
        b'\'' if text.get(1) == Some(&b'\\') => Some(closed_by(b'\'', 3)),
        // Anything else that opens with an apostrophe is a lifetime.
        b'\'' if text.get(2) == Some(&b'\'') => Some(3),
        b'r' if !before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
            let hashes = text[1..].iter().take_while(|&&byte| byte == b'#').count();
            if text.get(1 + hashes) != Some(&b'"') {
                return None;
            }
            let mut end = vec![b'"'];
            end.resize(1 + hashes, b'#');
            let inside = &text[2 + hashes..];
            let length = inside.windows(end.len()).position(|window| window == end).unwrap_or(inside.len());
            Some((2 + hashes + length + end.len()).min(text.len()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        let text = "//! Module.\n\nuse a; // why\n/* one\n /* two */\n three */ let x = \"// no comment\";\nlet c = '\"'; // \"\nlet s = r#\"a\n\"//\n\"#;\nlet l: &'a str = \"\\\"//\";\n    // end\n";
        assert_eq!(significant(text), (6, vec![]), "{}", without_comments(text));
    }

    #[test]
    fn what_is_for_tests_does_not_count() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n        let x = '{';\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod model;\n#[cfg(test)]\nuse d::e;\nfn f() {\n}\n";
        assert_eq!(significant(text), (4, vec!["model".to_string()]));
    }

    #[test]
    fn test_modules_in_files_of_their_own_do_not_count() {
        let folder = std::env::temp_dir().join(format!("kilonova-lines-{}", std::process::id()));
        let source = folder.join("microhypervisor/src");
        fs::create_dir_all(source.join("queue")).expect("can write");
        for (file, text) in [
            ("queue.rs", "fn a() {}\n#[cfg(test)]\nmod tests;\n"),
            ("queue/tests.rs", "fn b() {}\n"),
            ("iommu.rs", "fn c() {}\n"),
            ("entry.S", "// comment\nmov %eax, %ebx\n\n/* more */\n"),
            ("queue.txt", "no source\n"),
        ] {
            fs::write(source.join(file), text).expect("can write");
        }
        let lines = privileged(&folder);
        let _ = fs::remove_dir_all(&folder);
        assert_eq!(lines.expect("is readable"), (1, 2));
    }
}
