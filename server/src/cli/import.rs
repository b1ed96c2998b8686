//! `import`: the driver of [`crate::import`] with a sink that sends batches over the socket.
//!
//! Keeps: batches are added in the order of the file unless the daemon is too busy for one of them; a dry run sends
//! nothing that changes anything.

use std::collections::{HashSet, VecDeque};
use std::io::Write;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::NamedTempFile;

use super::args::{self, FormatArg};
use super::exit::{CliError, Exit};
use super::output::{FAINT, WARN};
use super::{CALL_TIMEOUT, Context, progress, show};
use crate::client::{Client, ClientError};
use crate::import::{self, BatchCounts, Counts, Format, Item, Limits, Sink};
use crate::rpc::ErrorCode;

/// Batches under way: enough that the daemon syncs one while the next arrives.
const PIPELINE_DEPTH: usize = 3;
/// How long the daemon may refuse every batch as busy before the import gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const STATS_PAUSE: Duration = Duration::from_millis(200);

/// What an import came to, as it is printed.
#[derive(Serialize)]
struct Summary<'a> {
    format: Format,
    dry_run: bool,
    #[serde(flatten)]
    counts: &'a Counts,
    /// Whether everything in the space can be found by meaning.
    searchable: bool,
    took_ms: u64,
}

/// `flashbulb import`
pub fn import(context: &Context, args: &args::Import) -> Result<Exit, CliError> {
    let started = Instant::now();
    let piped = (args.path.as_os_str() == "-").then(from_stdin).transpose()?;
    let path = piped.as_ref().map_or(args.path.as_path(), NamedTempFile::path);
    let mut source = import::open(path, format(args.format))?;
    let found = source.format();
    let bar = progress::bytes(source.bytes_total(), "importing");
    let mut on_progress = |progress: &import::Progress<'_>| {
        bar.set_position(progress.bytes_done);
        bar.set_message(format!("importing ({} read)", progress.counts.read));
    };
    let limits = Limits::default();
    let space = args.space.space.as_str();
    let (counts, searchable) = if args.dry_run {
        let mut sink = DryRun::new(context, space)?;
        let counts = import::run(&mut source, &mut sink, &limits, &mut on_progress)?;
        bar.finish_and_clear();
        (counts, false)
    } else {
        let mut client = context.client()?;
        let mut sink = RpcSink::new(&mut client, space);
        let counts = import::run(&mut source, &mut sink, &limits, &mut on_progress)?;
        bar.finish_and_clear();
        let nothing_to_wait_for = counts.added + counts.already_there == 0;
        let searchable =
            nothing_to_wait_for || wait_searchable(context, &mut client, space, args.no_wait)?;
        (counts, searchable)
    };
    let summary = Summary {
        format: found,
        dry_run: args.dry_run,
        counts: &counts,
        searchable,
        took_ms: started.elapsed().as_millis() as u64,
    };
    context.out.print(&summary, |out| write_summary(out, &summary))?;
    Ok(Exit::Ok)
}

/// Stdin in a file: a format is found by looking at the beginning, and some are read twice.
fn from_stdin() -> Result<NamedTempFile, CliError> {
    let copy = || -> std::io::Result<NamedTempFile> {
        let mut file = NamedTempFile::new()?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file)?;
        file.flush()?;
        Ok(file)
    };
    copy().map_err(|error| {
        let folder = std::env::temp_dir();
        let folder = folder.display();
        CliError::invalid(format!("cannot copy stdin to a temporary file in {folder}: {error}"))
    })
}

fn format(format: FormatArg) -> Option<Format> {
    match format {
        FormatArg::Auto => None,
        FormatArg::Messages => Some(Format::Messages),
        FormatArg::Claude => Some(Format::Claude),
        FormatArg::Chatgpt => Some(Format::ChatGpt),
        FormatArg::Text => Some(Format::Text),
        FormatArg::Export => Some(Format::Export),
    }
}

fn write_summary(out: &mut dyn Write, summary: &Summary<'_>) -> std::io::Result<()> {
    let counts = summary.counts;
    let would = if summary.dry_run { "would add" } else { "added" };
    writeln!(out, "{would} {} (format {})", show::memories(counts.added), summary.format)?;
    if counts.already_there > 0 {
        writeln!(out, "already there: {}", counts.already_there)?;
    }
    for (reason, count) in &counts.skipped {
        let places: Vec<String> = counts.skipped_at[reason]
            .iter()
            .map(|place| match (&place.file, place.line) {
                (Some(file), 0) => file.clone(),
                (Some(file), line) => format!("{file}:{line}"),
                (None, line) => format!("line {line}"),
            })
            .collect();
        let more = if *count > places.len() as u64 { ", …" } else { "" };
        writeln!(
            out,
            "skipped {}: {count}  {FAINT}{}{more}{FAINT:#}",
            reason.as_str(),
            places.join(", ")
        )?;
    }
    Ok(())
}

/// Waits until every memory of the space can be found by meaning, or could not be embedded; gives back whether
/// all can. Without waiting, only looks.
pub fn wait_searchable(
    context: &Context,
    client: &mut Client,
    space: &str,
    no_wait: bool,
) -> Result<bool, CliError> {
    #[derive(Deserialize)]
    struct Stats {
        memories: u64,
        pending: u64,
        /// Of those pending, the ones that the model could not embed.
        #[serde(default)]
        embedding_failed: u64,
    }
    let bar = progress::count(0, "embedding");
    loop {
        let stats: Stats = client.call("space.stats", json!({ "space": space }), CALL_TIMEOUT)?;
        bar.set_length(stats.memories);
        bar.set_position(stats.memories.saturating_sub(stats.pending));
        if stats.pending <= stats.embedding_failed || no_wait {
            bar.finish_and_clear();
            if stats.embedding_failed > 0 {
                context.out.note(format_args!(
                    "{WARN}warning:{WARN:#} {} could not be embedded; `flashbulb status` says why",
                    show::memories(stats.embedding_failed)
                ));
            }
            return Ok(stats.pending == 0);
        }
        std::thread::sleep(STATS_PAUSE);
    }
}

#[derive(Serialize)]
struct AddParams<'a> {
    space: &'a str,
    items: &'a [Item],
    on_conflict: &'static str,
}

#[derive(Deserialize)]
struct Added {
    items: Vec<AddedItem>,
}

#[derive(Deserialize)]
struct AddedItem {
    status: String,
}

/// A batch the daemon was too busy for, and when to try again.
type Refused = (Vec<Item>, Duration);

/// Sends batches over the socket, a few ahead of their answers.
pub struct RpcSink<'a> {
    client: &'a mut Client,
    space: &'a str,
    under_way: VecDeque<(u64, Vec<Item>)>,
}

impl<'a> RpcSink<'a> {
    /// A sink into this space.
    pub fn new(client: &'a mut Client, space: &'a str) -> Self {
        RpcSink { client, space, under_way: VecDeque::new() }
    }

    fn send(&mut self, items: Vec<Item>) -> Result<(), ClientError> {
        let params = AddParams { space: self.space, items: &items, on_conflict: "skip" };
        let id = self.client.send("memory.add", &params)?;
        self.under_way.push_back((id, items));
        Ok(())
    }

    /// The answer to the oldest batch; the batch itself where the daemon was too busy for it.
    fn oldest(&mut self) -> Result<Result<BatchCounts, Refused>, ClientError> {
        let Some((expected, items)) = self.under_way.pop_front() else {
            return Ok(Ok(BatchCounts::default()));
        };
        let (id, answer) = self.client.receive(CALL_TIMEOUT)?;
        if id != expected {
            return Err(ClientError::Protocol {
                path: self.client.path().to_owned(),
                what: format!("an answer to request {id} came before the one to {expected}"),
            });
        }
        match answer {
            Ok(raw) => {
                let added: Added = self.client.parse("memory.add", &raw)?;
                let skipped = added.items.iter().filter(|item| item.status == "skipped").count();
                Ok(Ok(BatchCounts {
                    added: (added.items.len() - skipped) as u64,
                    already_there: skipped as u64,
                }))
            }
            Err(error) if error.code == i64::from(ErrorCode::Busy.code()) => {
                let pause = error.retry_after().unwrap_or(BUSY_PAUSE);
                Ok(Err((items, pause)))
            }
            Err(error) => Err(ClientError::Rpc(error)),
        }
    }

    /// Waits until at most `left` batches are under way. Batches that were refused as busy are sent again one by
    /// one, so that they keep their order.
    fn settle(&mut self, left: usize) -> Result<BatchCounts, ClientError> {
        let mut counts = BatchCounts::default();
        while self.under_way.len() > left {
            let mut refused = Vec::new();
            loop {
                match self.oldest()? {
                    Ok(batch) => add_to(&mut counts, batch),
                    Err(batch) => refused.push(batch),
                }
                let enough = refused.is_empty() && self.under_way.len() <= left;
                if enough || self.under_way.is_empty() {
                    break;
                }
            }
            for (items, pause) in refused {
                add_to(&mut counts, self.insist(items, pause)?);
            }
        }
        Ok(counts)
    }

    /// Sends a batch until it is taken. Nothing else may be under way.
    fn insist(&mut self, items: Vec<Item>, pause: Duration) -> Result<BatchCounts, ClientError> {
        let started = Instant::now();
        let (mut items, mut pause) = (items, pause);
        while started.elapsed() < BUSY_TIMEOUT {
            std::thread::sleep(pause.min(LONGEST_PAUSE));
            self.send(items)?;
            match self.oldest()? {
                Ok(counts) => return Ok(counts),
                Err(refused) => (items, pause) = refused,
            }
        }
        Err(ClientError::Timeout { method: "memory.add".to_owned(), timeout: BUSY_TIMEOUT })
    }
}

fn add_to(sum: &mut BatchCounts, counts: BatchCounts) {
    sum.added += counts.added;
    sum.already_there += counts.already_there;
}

impl Sink for RpcSink<'_> {
    type Error = CliError;

    fn add(&mut self, items: Vec<Item>) -> Result<BatchCounts, CliError> {
        let counts = self.settle(PIPELINE_DEPTH - 1)?;
        self.send(items)?;
        Ok(counts)
    }

    fn finish(&mut self) -> Result<BatchCounts, CliError> {
        Ok(self.settle(0)?)
    }
}

/// Counts what would be added. Asks the daemon, where one runs, which ids are there.
struct DryRun<'a> {
    client: Option<Client>,
    space: &'a str,
    seen: HashSet<u64>,
}

impl<'a> DryRun<'a> {
    fn new(context: &Context, space: &'a str) -> Result<Self, CliError> {
        let client = match Client::connect(&context.socket()) {
            Ok(client) => Some(client),
            Err(ClientError::NoDaemon { .. }) => {
                context.out.note(
                    "no daemon runs, so what is already there is not known; this counts as if the space were empty",
                );
                None
            }
            Err(error) => return Err(error.into()),
        };
        Ok(DryRun { client, space, seen: HashSet::new() })
    }

    /// Which of these ids the space has.
    fn there(&mut self, items: &[Item]) -> Result<Vec<bool>, CliError> {
        #[derive(Deserialize)]
        struct Found {
            items: Vec<Option<serde::de::IgnoredAny>>,
        }
        let nothing = vec![false; items.len()];
        let Some(client) = &mut self.client else {
            return Ok(nothing);
        };
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        let params = json!({ "space": self.space, "ids": ids });
        match client.call::<Found>("memory.get", params, CALL_TIMEOUT) {
            Ok(found) => Ok(found.items.iter().map(Option::is_some).collect()),
            Err(ClientError::Rpc(error))
                if error.code == i64::from(ErrorCode::NoSuchSpace.code()) =>
            {
                self.client = None;
                Ok(nothing)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl Sink for DryRun<'_> {
    type Error = CliError;

    fn add(&mut self, items: Vec<Item>) -> Result<BatchCounts, CliError> {
        let there = self.there(&items)?;
        let mut counts = BatchCounts::default();
        for (item, there) in items.iter().zip(there) {
            let first = self.seen.insert(xxhash_rust::xxh3::xxh3_64(item.id.as_bytes()));
            if there || !first {
                counts.already_there += 1;
            } else {
                counts.added += 1;
            }
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    use super::*;

    fn item(id: &str) -> Item {
        Item {
            id: id.to_owned(),
            text: "text".to_owned(),
            role: None,
            session: None,
            ts_ms: None,
            meta: None,
        }
    }

    /// Imports batches of one item each; the other end answers every request as `answer` says, and gives back the
    /// ids in the order in which they came.
    fn send_all(
        ids: &[&str],
        mut answer: impl FnMut(usize) -> &'static str + Send + 'static,
    ) -> (Result<BatchCounts, CliError>, Vec<String>) {
        let (near, far) = UnixStream::pair().unwrap();
        let daemon = std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut writer = far.try_clone().unwrap();
            for line in BufReader::new(far).lines() {
                // An import that ends early leaves with answers unread, which resets the connection.
                let Ok(line) = line else { break };
                let request: serde_json::Value = serde_json::from_str(&line).unwrap();
                assert_eq!(request["params"]["on_conflict"], "skip");
                seen.push(request["params"]["items"][0]["id"].as_str().unwrap().to_owned());
                let id = &request["id"];
                if writeln!(writer, "{{\"id\":{id},{}}}", answer(seen.len())).is_err() {
                    break;
                }
            }
            seen
        });
        let mut client = Client::over(near, Path::new("/test"));
        let mut sink = RpcSink::new(&mut client, "s");
        let mut total = BatchCounts::default();
        let mut import = || {
            for id in ids {
                add_to(&mut total, sink.add(vec![item(id)])?);
            }
            add_to(&mut total, sink.finish()?);
            Ok(total)
        };
        let result = import();
        drop(client);
        (result, daemon.join().unwrap())
    }

    const ADDED: &str = r#""result":{"items":[{"id":"x","status":"added"}],"seq":1}"#;
    const SKIPPED: &str = r#""result":{"items":[{"id":"x","status":"skipped"}],"seq":1}"#;
    const BUSY: &str = r#""error":{"code":1006,"message":"busy","data":{"retry_after_ms":1}}"#;
    const BAD: &str = r#""error":{"code":-32602,"message":"no"}"#;

    #[test]
    fn batches_are_sent_ahead_and_counted() {
        let (counts, seen) =
            send_all(&["a", "b", "c", "d", "e"], |at| if at == 2 { SKIPPED } else { ADDED });
        let want = BatchCounts { added: 4, already_there: 1 };
        assert_eq!(
            (counts.unwrap(), seen),
            (want, ["a", "b", "c", "d", "e"].map(String::from).to_vec())
        );
    }

    #[test]
    fn batches_refused_as_busy_are_sent_again_in_their_order() {
        let (counts, seen) =
            send_all(&["a", "b", "c", "d"], |at| if (2..=5).contains(&at) { BUSY } else { ADDED });
        assert_eq!(counts.unwrap().added, 4);
        assert_eq!(seen, ["a", "b", "c", "d", "b", "b", "c", "d"]);
    }

    #[test]
    fn a_refused_batch_ends_the_import() {
        let (counts, _) = send_all(&["a", "b"], |_| BAD);
        assert_eq!(counts.unwrap_err().exit, Exit::Invalid);
    }
}
