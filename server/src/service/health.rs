//! `admin.health`: proof that the service can do what it is for.
//!
//! Invariant: each call tokenises and embeds a real sentence in the interactive lane and searches a real vector index for
//! it, and fails unless the right one of several is found. It leaves nothing in any space: the index is its own, in
//! memory. It must not report what is configured, only what ran.

use crate::embed::{EmbedError, Embedder};
use crate::rpc::params::NoParams;
use crate::rpc::results::{HealthResult, HealthTookUs, RanOut, SearchRan};
use crate::rpc::{ErrorCode, RpcError};
use crate::service::Context;
use crate::service::clock::Stage;
use crate::service::lanes::interactive::Wanted;
use crate::service::lanes::line::Until;
use crate::service::output::micros;
use flashbulb_engine::index::{Accept, RowSource, Scratch, SearchParams, VectorIndex, VectorNo};
use flashbulb_kernels::Kernels;
use std::convert::Infallible;
use std::time::{Duration, Instant};

/// What is looked for is the first; the others must not be taken for it.
const TEXTS: [&str; 3] = [
    "The lighthouse keeper paints the boat every spring",
    "Interest rates rose again in the second quarter",
    "The compiler reports a missing semicolon",
];

/// Longest that the probe may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// An index over the probe's texts.
pub struct Probe {
    kernels: Kernels,
    index: VectorIndex,
    rows: Rows,
}

struct Rows(Vec<Vec<f32>>);

impl RowSource for Rows {
    type Error = Infallible;

    fn copy_row(&self, vector: VectorNo, out: &mut [f32]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0[vector.0 as usize]);
        Ok(())
    }
}

impl Probe {
    /// Embeds the texts and indexes them.
    ///
    /// # Errors
    /// When the model cannot embed them.
    pub fn new(embedder: &Embedder) -> Result<Self, EmbedError> {
        let mut session = embedder.session()?;
        let kernels = Kernels::detect();
        let index = VectorIndex::new(embedder.dim(), kernels);
        let mut rows = Vec::new();
        for text in TEXTS {
            for tokens in &embedder.document_windows(text)? {
                let vector = session.embed(tokens)?;
                index.push(&vector);
                rows.push(vector);
            }
        }
        Ok(Self { kernels, index, rows: Rows(rows) })
    }

    fn search(&self, query: &[f32]) -> Result<SearchRan, RpcError> {
        let params = SearchParams::new(1);
        let found = self.index.search(query, &params, &self.rows, Accept::All, &mut Scratch::new());
        let Ok(found) = found;
        match found.hits.first() {
            Some((VectorNo(0), score)) if score.is_finite() => Ok(SearchRan {
                device: "cpu",
                simd: self.kernels.level().to_string(),
                path: found.path.to_string(),
                scanned: Some(found.scanned),
                windows: Some(1),
            }),
            other => Err(RpcError::new(
                ErrorCode::InternalError,
                format!(
                    "the probe's own text was not found first, but {other:?}: model or kernels compute wrongly; run `flashbulb doctor`"
                ),
            )),
        }
    }
}

/// Handles `admin.health`.
///
/// # Errors
/// When the probe cannot be embedded or is not found.
pub fn health(context: &Context, NoParams {}: NoParams) -> Result<HealthResult, RpcError> {
    let service = &context.service;
    let begun = Instant::now();
    let until = Until { deadline: begun + DEADLINE, promise: None };
    let wanted = Wanted { until, gone: &|| context.is_gone() };
    context.clock.skip();
    let embedded = service.interactive.embed_query(TEXTS[0], &wanted)?;
    context.clock.mark_with(
        Stage::Embed,
        &[(Stage::Queue, embedded.waited), (Stage::Tokenise, embedded.tokenised)],
    );
    let embed = begun.elapsed();
    let searching = Instant::now();
    let search = service.probe.search(&embedded.vectors[0])?;
    context.clock.mark(Stage::Dense);
    let took_us = HealthTookUs {
        embed: micros(embed),
        search: micros(searching.elapsed()),
        total: micros(begun.elapsed()),
    };
    let degraded = degraded(context);
    Ok(HealthResult {
        status: if degraded.is_empty() { "ok" } else { "degraded" },
        ran: RanOut { embed: Some(service.embed_ran_whole.clone()), search },
        took_us,
        degraded,
    })
}

/// What is less than it should be, for `admin.*`.
pub(crate) fn degraded(context: &Context) -> Vec<String> {
    let bulk = context.service.bulk.status();
    let mut degraded = Vec::from_iter(context.service.device.degraded());
    if bulk.failed > 0 {
        degraded.push(format!(
            "embedding_failed: {} memories could not be embedded; `admin.status` says why",
            bulk.failed
        ));
    }
    let damaged = context.service.store.scrub_status().damaged;
    if let Some(first) = damaged.first() {
        degraded.push(format!(
            "damaged: {} blocks do not match their checksums, the first: {first}; `flashbulb verify` lists all, then restore a snapshot",
            damaged.len()
        ));
    }
    for priority in bulk.priority.iter().chain([&context.service.background.priority()]) {
        if priority != "SCHED_IDLE" && priority != "starting" {
            degraded.push(format!("priority: {priority}"));
        }
    }
    degraded
}
