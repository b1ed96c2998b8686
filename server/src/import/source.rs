//! A file, or a folder of logs, as a stream of memories and of things left out, each with its place.
//!
//! Keeps: one record (line or array element) is held at a time; files of a folder come in the order of their
//! names, so that the order of memories does not depend on the file system. Must not know what becomes of
//! the items.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::detect::{Layout, detect};
use super::elements::{Element, ElementReader};
use super::lines::{Line, LineReader};
use super::{Entry, Format, ImportError, SkipReason};
use super::{chatgpt::ChatGpt, claude::Claude, export::Export, messages::Messages, plain::Plain};

/// Makes entries from records; one parser serves all files of an import.
pub(super) trait Parser: Send {
    /// Takes one line or array element.
    fn record(&mut self, record: &str, out: &mut Vec<Entry>);

    /// The file has ended; whatever waited for more comes out.
    fn finish(&mut self, _out: &mut Vec<Entry>) {}
}

/// An entry and where it was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The memory or the skip.
    pub entry: Entry,
    /// The file, relative to the folder that was given; `None` where one file was given.
    pub file: Option<Arc<str>>,
    /// The line, from 1; 0 where a whole file was left out.
    pub line: u64,
}

/// An iterator over everything in the given file or folder.
pub struct Source {
    format: Format,
    parser: Box<dyn Parser>,
    files: VecDeque<LogFile>,
    current: Option<OpenFile>,
    ready: VecDeque<Found>,
    bytes_done: u64,
    bytes_total: u64,
}

struct LogFile {
    path: PathBuf,
    name: Option<Arc<str>>,
    layout: Layout,
}

struct OpenFile {
    file: LogFile,
    records: Records,
}

enum Records {
    Lines(LineReader<BufReader<File>>),
    Elements(ElementReader<BufReader<File>>),
}

enum Record {
    Bytes(Vec<u8>),
    Unreadable(SkipReason),
}

/// Opens a file or a folder; without a format, finds it from the content.
///
/// # Errors
///
/// When the path cannot be read, or its content fits no format.
pub fn open(path: &Path, format: Option<Format>) -> Result<Source, ImportError> {
    let metadata = fs::metadata(path).map_err(|source| ImportError::Io {
        op: "open",
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_dir() {
        return open_folder(path, format);
    }
    if !metadata.is_file() {
        return Err(ImportError::NotAFile { path: path.to_owned() });
    }
    let (format, layout) = detect(path, format)?;
    let file = LogFile { path: path.to_owned(), name: None, layout };
    let files = VecDeque::from([file]);
    Ok(Source::new(format, files, VecDeque::new(), metadata.len()))
}

fn open_folder(folder: &Path, format: Option<Format>) -> Result<Source, ImportError> {
    if format.is_some_and(|format| format != Format::Claude) {
        return Err(ImportError::Folder { path: folder.to_owned() });
    }
    let mut walk =
        Walk { root: folder, files: VecDeque::new(), skipped: VecDeque::new(), bytes: 0 };
    walk.folder(folder, false, 0)?;
    if walk.files.is_empty() && walk.skipped.iter().all(|found| !is_subagent(found)) {
        return Err(ImportError::NoLogs { path: folder.to_owned() });
    }
    Ok(Source::new(Format::Claude, walk.files, walk.skipped, walk.bytes))
}

fn is_subagent(found: &Found) -> bool {
    matches!(found.entry, Entry::Skip(SkipReason::Subagent))
}

/// Finds the logs under a folder. Links to folders are not followed, so the walk ends.
struct Walk<'a> {
    root: &'a Path,
    files: VecDeque<LogFile>,
    skipped: VecDeque<Found>,
    bytes: u64,
}

impl Walk<'_> {
    const MAX_DEPTH: usize = 32;

    fn folder(&mut self, folder: &Path, subagents: bool, depth: usize) -> Result<(), ImportError> {
        if depth > Self::MAX_DEPTH {
            return Ok(());
        }
        let io_error = |source| ImportError::Io { op: "list", path: folder.to_owned(), source };
        let mut entries = fs::read_dir(folder)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(io_error)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_type().map_err(io_error)?.is_dir() {
                let below = subagents || entry.file_name() == "subagents";
                self.folder(&path, below, depth + 1)?;
                continue;
            }
            let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
            let is_log = path.extension().is_some_and(|ext| ext == "jsonl");
            let name: Arc<str> =
                path.strip_prefix(self.root).unwrap_or(&path).to_string_lossy().into();
            match metadata {
                Some(metadata) if is_log && !subagents => {
                    self.bytes += metadata.len();
                    self.files.push_back(LogFile { path, name: Some(name), layout: Layout::Lines });
                }
                _ => self.skipped.push_back(Found {
                    entry: Entry::Skip(match (is_log, subagents) {
                        (true, true) => SkipReason::Subagent,
                        _ => SkipReason::OtherFile,
                    }),
                    file: Some(name),
                    line: 0,
                }),
            }
        }
        Ok(())
    }
}

impl Source {
    fn new(
        format: Format,
        files: VecDeque<LogFile>,
        ready: VecDeque<Found>,
        bytes_total: u64,
    ) -> Self {
        let parser: Box<dyn Parser> = match format {
            Format::Messages => Box::<Messages>::default(),
            Format::Claude => Box::<Claude>::default(),
            Format::ChatGpt => Box::<ChatGpt>::default(),
            Format::Text => Box::<Plain>::default(),
            Format::Export => Box::<Export>::default(),
        };
        Source { format, parser, files, current: None, ready, bytes_done: 0, bytes_total }
    }

    /// The format that was given or found.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes read so far, over all files.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_done + self.current.as_ref().map_or(0, OpenFile::bytes_read)
    }

    /// Bytes of all files, as they were when the source was opened.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Reads one record, or goes on to the next file. `false` when nothing is left.
    fn advance(&mut self) -> Result<bool, ImportError> {
        let Some(current) = &mut self.current else {
            let Some(file) = self.files.pop_front() else {
                return Ok(false);
            };
            self.current = Some(OpenFile::open(file)?);
            return Ok(true);
        };
        let mut entries = Vec::new();
        let record = current.read()?;
        let ended = record.is_none();
        match record {
            None => self.parser.finish(&mut entries),
            Some(Record::Unreadable(reason)) => entries.push(Entry::Skip(reason)),
            Some(Record::Bytes(bytes)) => match std::str::from_utf8(&bytes) {
                Ok(text) => self.parser.record(text, &mut entries),
                Err(_) => entries.push(Entry::Skip(SkipReason::InvalidUtf8)),
            },
        }
        let (file, line) = (current.file.name.clone(), current.number());
        self.ready.extend(entries.into_iter().map(|entry| Found {
            entry,
            file: file.clone(),
            line,
        }));
        if ended {
            self.bytes_done += current.bytes_read();
            self.current = None;
        }
        Ok(true)
    }
}

impl Iterator for Source {
    type Item = Result<Found, ImportError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                return Some(Ok(found));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    // The file cannot be read on; without this the same error would come for ever.
                    self.current = None;
                    self.files.clear();
                    return Some(Err(error));
                }
            }
        }
    }
}

impl OpenFile {
    fn open(file: LogFile) -> Result<Self, ImportError> {
        let handle = File::open(&file.path).map_err(|source| ImportError::Io {
            op: "open",
            path: file.path.clone(),
            source,
        })?;
        let reader = BufReader::with_capacity(256 << 10, handle);
        let records = match file.layout {
            Layout::Lines => Records::Lines(LineReader::new(reader)),
            Layout::Array => Records::Elements(ElementReader::of_array(reader)),
            Layout::Values => Records::Elements(ElementReader::of_values(reader)),
        };
        Ok(OpenFile { file, records })
    }

    fn read(&mut self) -> Result<Option<Record>, ImportError> {
        let record = match &mut self.records {
            Records::Lines(lines) => lines.read().map(|line| {
                line.map(|line| match line {
                    Line::Bytes(bytes) => Record::Bytes(bytes),
                    Line::TooLong => Record::Unreadable(SkipReason::LineTooLong),
                })
            }),
            Records::Elements(elements) => elements.read().map(|element| {
                element.map(|element| match element {
                    Element::Bytes(bytes) => Record::Bytes(bytes),
                    Element::TooLong => Record::Unreadable(SkipReason::LineTooLong),
                    Element::CutOff => Record::Unreadable(SkipReason::BrokenJson),
                })
            }),
        };
        record.map_err(|source| ImportError::Io {
            op: "read",
            path: self.file.path.clone(),
            source,
        })
    }

    fn number(&self) -> u64 {
        match &self.records {
            Records::Lines(lines) => lines.number(),
            Records::Elements(elements) => elements.number(),
        }
    }

    fn bytes_read(&self) -> u64 {
        match &self.records {
            Records::Lines(lines) => lines.bytes_read(),
            Records::Elements(elements) => elements.bytes_read(),
        }
    }
}
