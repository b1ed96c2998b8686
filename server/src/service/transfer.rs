//! `memory.import` and `memory.export`: whole conversations in from files, whole spaces out to files.
//!
//! Invariant: an import never adds a memory twice and keeps the number of memories that wait for vectors bounded; an export
//! is there as a whole or not at all, and never takes the place of anything but a regular file. It must not know file
//! formats: `crate::import` does.

use crate::import::{self, BatchCounts, Item, RunError, Sink};
use crate::rpc::params::{ExportFormat, ExportParams, ImportFormat, ImportParams};
use crate::rpc::results::{ExportResult, ImportResult};
use crate::rpc::time::TsMs;
use crate::rpc::{ErrorCode, RpcError};
use crate::service::errors::{of_engine, of_file};
use crate::service::lanes::bulk::Reserved;
use crate::service::memory::{How, reserve_pending, store};
use crate::service::output::{CHUNK, memory};
use crate::service::{Context, Service, validate};
use flashbulb_engine::{AddStatus, Error, NewMemory, OnConflict, Seq, SpaceName};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an import waits for the bulk lane before it looks again.
const PENDING_WAIT: Duration = Duration::from_millis(50);

/// Handles `memory.import`.
///
/// # Errors
/// −32602 for the path, `Transfer` for a file that cannot be read or fits no format, and what the store says; what was
/// added before stays.
pub fn import(context: &Context, params: ImportParams) -> Result<ImportResult, RpcError> {
    let space = validate::space(&params.space)?;
    let path = validate::path(&params.path)?;
    // Mostly waiting, and for long: it must not take a place from those who work.
    context.stop_counting();
    import_into(&context.service, space, &path, params.format.map(format_of), params.dry_run)
}

fn format_of(format: ImportFormat) -> import::Format {
    match format {
        ImportFormat::Messages => import::Format::Messages,
        ImportFormat::Claude => import::Format::Claude,
        ImportFormat::ChatGpt => import::Format::ChatGpt,
        ImportFormat::Text => import::Format::Text,
        ImportFormat::Export => import::Format::Export,
    }
}

/// Imports a file or folder into a space.
///
/// # Errors
/// As [`import()`].
pub fn import_into(
    service: &Service,
    space: SpaceName,
    path: &Path,
    format: Option<import::Format>,
    dry_run: bool,
) -> Result<ImportResult, RpcError> {
    let failed = |error: &dyn std::fmt::Display| {
        RpcError::new(ErrorCode::Transfer, error.to_string())
            .with_data(serde_json::json!({ "what": path }))
    };
    let mut source = import::open(path, format).map_err(|error| failed(&error))?;
    let limits = import::Limits {
        text_bytes: service.limits.text_bytes,
        id_bytes: service.limits.id_bytes,
        role_bytes: service.limits.role_bytes,
        session_bytes: service.limits.session_bytes,
        meta_bytes: service.limits.meta_bytes,
        meta_depth: service.limits.meta_depth,
        ..import::Limits::default()
    };
    let mut sink = StoreSink { service, space, dry_run };
    let counts =
        import::run(&mut source, &mut sink, &limits, &mut |_| {}).map_err(|error| match error {
            RunError::Source(error) => failed(&error),
            RunError::Sink(error) => error,
        })?;
    let skipped = serde_json::to_value(&counts.skipped)
        .and_then(serde_json::from_value)
        .map_err(|error| RpcError::new(ErrorCode::InternalError, error.to_string()))?;
    Ok(ImportResult {
        format: source.format().to_string(),
        read: counts.read,
        added: counts.added,
        already_there: counts.already_there,
        skipped,
        dry_run,
    })
}

struct StoreSink<'a> {
    service: &'a Service,
    space: SpaceName,
    dry_run: bool,
}

impl Sink for StoreSink<'_> {
    type Error = RpcError;

    fn add(&mut self, items: Vec<Item>) -> Result<BatchCounts, RpcError> {
        let all = items.len() as u64;
        let already_there = if self.dry_run {
            self.count_there(&items)?
        } else {
            let _reserved = self.wait_for_room(items.len())?;
            self.store(items)?
        };
        Ok(BatchCounts { added: all - already_there, already_there })
    }
}

impl StoreSink<'_> {
    fn count_there(&self, items: &[Item]) -> Result<u64, RpcError> {
        let ids: Vec<String> = items.iter().map(|item| item.id.clone()).collect();
        match self.service.store.get(&self.space, &ids) {
            Ok(found) => Ok(found.iter().flatten().count() as u64),
            Err(Error::NoSuchSpace { .. }) => Ok(0),
            Err(error) => Err(of_engine(error)),
        }
    }

    /// Waits where a client would be told `Busy`.
    fn wait_for_room(&self, count: usize) -> Result<Reserved, RpcError> {
        loop {
            if let Ok(reserved) = reserve_pending(self.service, count, false) {
                return Ok(reserved);
            }
            let next = Instant::now() + PENDING_WAIT;
            if self.service.lifecycle.sleep_until(next) {
                return Err(RpcError::new(
                    ErrorCode::ShuttingDown,
                    "the service is stopping; import again to go on from here",
                ));
            }
        }
    }

    fn store(&self, items: Vec<Item>) -> Result<u64, RpcError> {
        let limits = &self.service.limits;
        let now = TsMs::now();
        let memories = items
            .into_iter()
            .map(|item| {
                let meta =
                    item.meta.map(|raw| validate::meta("meta", raw.get(), limits)).transpose()?;
                Ok(NewMemory {
                    id: item.id,
                    text: item.text,
                    role: item.role,
                    session: item.session,
                    ts_ms: item.ts_ms.unwrap_or(now.0),
                    meta,
                    vectors: None,
                    request: None,
                })
            })
            .collect::<Result<Vec<_>, RpcError>>()?;
        let added = store(self.service, &self.space, memories, How::Add(OnConflict::Skip))?;
        let waiting: Vec<Seq> =
            added.items.iter().filter(|item| item.needs_vectors).map(|item| item.seq).collect();
        self.service.bulk.added(&self.space, &waiting, false);
        let skipped = |item: &&flashbulb_engine::AddedItem| item.status == AddStatus::Skipped;
        Ok(added.items.iter().filter(skipped).count() as u64)
    }
}

/// Handles `memory.export`.
///
/// # Errors
/// −32602 for the path, `NoSuchSpace`, and what the file system says.
pub fn export(context: &Context, params: ExportParams) -> Result<ExportResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    let path = validate::path(&params.path)?;
    let ExportFormat::Jsonl = params.format;
    check_target(service, &path)?;
    service.store.fetch(&space, &[]).map_err(of_engine)?;
    context.stop_counting();
    let folder = path.parent().unwrap_or(Path::new("/"));
    let file = tempfile::Builder::new()
        .prefix(".flashbulb-export-")
        .tempfile_in(folder)
        .map_err(|error| of_file("create a file beside", &path, &error))?;
    let mut counted = Counted { out: BufWriter::new(file), bytes: 0 };
    let exported = write_space(service, &space, &mut counted, &path)?;
    let bytes = counted.bytes;
    let file = counted.out.into_inner().map_err(|error| of_file("write", &path, error.error()))?;
    let sync = |file: &File, what| file.sync_all().map_err(|error| of_file(what, &path, &error));
    sync(file.as_file(), "sync")?;
    file.persist(&path).map_err(|error| of_file("rename the new file to", &path, &error.error))?;
    let folder =
        File::open(folder).map_err(|error| of_file("open the folder of", &path, &error))?;
    sync(&folder, "sync the folder of")?;
    Ok(ExportResult { exported, bytes, path: params.path })
}

/// Refuses everything that a rename would destroy without being asked to.
fn check_target(service: &Service, path: &Path) -> Result<(), RpcError> {
    match path.symlink_metadata() {
        Ok(there) if !there.is_file() => {
            return Err(RpcError::invalid(
                "path",
                format!("{} is there and is not a regular file", path.display()),
            ));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(of_file("look at", path, &error)),
    }
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    let store_dir = service.place.store_dir.canonicalize().ok();
    if let (Some(folder), Some(store_dir)) = (folder, store_dir)
        && folder.starts_with(store_dir)
    {
        return Err(RpcError::invalid("path", "lies inside the store; choose another folder"));
    }
    Ok(())
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn write_space(
    service: &Service,
    space: &SpaceName,
    out: &mut impl Write,
    path: &Path,
) -> Result<u64, RpcError> {
    let mut exported = 0;
    let mut after = None;
    loop {
        if service.lifecycle.is_stopping() {
            return Err(RpcError::new(
                ErrorCode::ShuttingDown,
                "the service is stopping; nothing was exported",
            ));
        }
        let page = service.store.list(space, None, None, after, CHUNK).map_err(of_engine)?;
        for found in page.items {
            let line = memory(found)?;
            serde_json::to_writer(&mut *out, &line)
                .map_err(std::io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
                .map_err(|error| of_file("write", path, &error))?;
            exported += 1;
        }
        after = page.next;
        if after.is_none() {
            return Ok(exported);
        }
    }
}
