//! `memory.search`: text or a vector in, memories out.
//!
//! Invariant: everything that can be wrong with the parameters is found before any work; the stages' times add up to no
//! more than the total; what was less than it should be is named. A query longer than the model's window is searched
//! with every window, and a memory's score is its best one. It must not know how the store searches.

use crate::rpc::params::{ContextParams, Mode, NeighborParams, SearchParams};
use crate::rpc::results::{
    ContextResult, HitOut, Neighbors, RanOut, Scores, SearchRan, SearchResult, TookUs,
};
use crate::rpc::{ErrorCode, Limits, RpcError};
use crate::service::clock::{Stage, Stages};
use crate::service::counters::count;
use crate::service::errors::of_engine;
use crate::service::lanes::cache::Asked;
use crate::service::lanes::interactive::{self, Lease};
use crate::service::lanes::line::{Until, past_deadline};
use crate::service::output::{CHUNK, Room, memory, micros};
use crate::service::{Context, validate};
use flashbulb_engine::{Filter, Found, Hit, Query, Seq, SpaceName, TimeRange};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How often a wait for `min_seq` looks whether it has become pointless.
const SLICE: Duration = Duration::from_millis(50);

enum What {
    Text(String),
    Vector(Vec<f32>),
}

/// Parameters that have passed every check.
struct Wanted {
    space: SpaceName,
    what: What,
    k: usize,
    filter: Option<Filter>,
    time: Option<TimeRange>,
    neighbors: Option<(usize, usize)>,
    min_seq: Option<Seq>,
    exact: bool,
    explain: bool,
    until: Until,
}

/// Handles `memory.context`.
///
/// # Errors
/// −32602 for wrong parameters, `NotYet` for right ones.
pub fn context(context: &Context, params: ContextParams) -> Result<ContextResult, RpcError> {
    if params.budget_tokens == 0 {
        return Err(RpcError::invalid("budget_tokens", "must be at least 1"));
    }
    check(
        context,
        SearchParams {
            space: params.space,
            query: params.query,
            vector: params.vector,
            k: params.k,
            mode: params.mode,
            filter: params.filter,
            time: params.time,
            neighbors: params.neighbors,
            min_seq: params.min_seq,
            exact: params.exact,
            explain: params.explain,
            deadline_ms: params.deadline_ms,
        },
    )?;
    Err(RpcError::not_yet("memory.context", "use memory.search and join the hits"))
}

/// Handles `memory.search`.
///
/// # Errors
/// −32602, `NoSuchSpace`, `NotYet`, `Busy`, `DeadlineExceeded`, `LimitExceeded`, `Embedding`, and what the store says.
pub fn search(context: &Context, params: SearchParams) -> Result<SearchResult, RpcError> {
    let service = &context.service;
    let mode = params.mode;
    let wanted = check(context, params)?;
    if let Some(Mode::Hybrid | Mode::Lexical) = mode {
        return Err(RpcError::not_yet(
            "mode `hybrid` or `lexical`",
            "use `dense` or leave `mode` out",
        ));
    }
    count(&service.counters.searches, 1);
    // An absent space must not cost an embedding, nor a wait.
    service.store.fetch(&wanted.space, &[]).map_err(of_engine)?;
    let clock = &context.clock;
    clock.skip();
    if let Some(min_seq) = wanted.min_seq {
        let there = wait_for(context, &wanted, min_seq);
        clock.mark(Stage::Queue);
        there?;
    }
    let Embedded { vectors, ran: embed, lease } = vectors(context, &wanted)?;
    // Who waits for the session would take the processor from this search, which is nearly done: measured, 3 ms for one
    // in a hundred. A filter may make the search long; then nobody shall wait for it.
    let _lease = lease.filter(|_| wanted.filter.is_none());
    clock.skip();
    let found = dense_search(context, &wanted, &vectors);
    clock.mark(Stage::Dense);
    let (hits, mut search, waiting) = found?;
    if Instant::now() >= wanted.until.deadline {
        return Err(past_deadline("the texts were fetched"));
    }
    let hits = fetch_hits(context, &wanted, &hits);
    clock.mark(Stage::Fetch);
    let hits = hits?;
    if wanted.explain {
        search.windows = Some(vectors.len());
    } else {
        search.scanned = None;
    }
    let degraded = degraded(context, &wanted.space, waiting);
    let took = took(&clock.read(), context.arrived().elapsed());
    Ok(SearchResult { hits, took_us: took, ran: RanOut { embed, search }, degraded })
}

/// The stages as the answer has them; that it will be written later, it cannot know.
fn took(stages: &Stages, total: Duration) -> TookUs {
    let us = |stage| stages.micros(stage);
    // A vector that was kept is found in less than a microsecond; zero is for searches without a text.
    let embed = us(Stage::Embed).max(u64::from(stages.get(Stage::Embed).is_some()));
    let mut took = TookUs {
        queue: us(Stage::Queue),
        tokenise: us(Stage::Tokenise),
        embed,
        dense: us(Stage::Dense),
        lexical: us(Stage::Lexical),
        fuse: us(Stage::Fuse),
        fetch: us(Stage::Fetch),
        total: 0,
    };
    let sum = took.queue
        + took.tokenise
        + took.embed
        + took.dense
        + took.lexical
        + took.fuse
        + took.fetch;
    took.total = micros(total).max(sum);
    took
}

fn check(context: &Context, params: SearchParams) -> Result<Wanted, RpcError> {
    let limits = &context.service.limits;
    let space = validate::space(&params.space)?;
    let what = match (params.query, params.vector) {
        (Some(query), None) => {
            validate::text("query", &query, limits.query_bytes)?;
            What::Text(query)
        }
        (None, Some(vector)) => What::Vector(vector),
        (Some(_), Some(_)) => {
            return Err(RpcError::invalid("query", "give either `query` or `vector`, not both"));
        }
        (None, None) => {
            return Err(RpcError::invalid("query", "give either `query` or `vector`"));
        }
    };
    Ok(Wanted {
        space,
        what,
        k: validate::number("k", params.k, 1, limits.k)?,
        filter: validate::filter(params.filter.as_ref())?,
        time: validate::time(params.time)?,
        neighbors: params.neighbors.map(|wanted| neighbors(wanted, limits)).transpose()?,
        min_seq: params.min_seq.map(Seq),
        exact: params.exact,
        explain: params.explain,
        until: Until {
            deadline: context.arrived() + validate::deadline(params.deadline_ms, limits)?,
            promise: params
                .deadline_ms
                .is_none()
                .then(|| Duration::from_millis(context.service.limits.promise_ms)),
        },
    })
}

fn neighbors(wanted: NeighborParams, limits: &Limits) -> Result<(usize, usize), RpcError> {
    Ok((
        validate::number("neighbors.before", wanted.before, 0, limits.neighbors)?,
        validate::number("neighbors.after", wanted.after, 0, limits.neighbors)?,
    ))
}

/// Waits until everything up to `min_seq` is there and can be found.
fn wait_for(context: &Context, wanted: &Wanted, min_seq: Seq) -> Result<(), RpcError> {
    context.stop_counting();
    let service = &context.service;
    loop {
        let begun = Instant::now();
        let slice = wanted.until.deadline.saturating_duration_since(begun).min(SLICE);
        let searchable =
            service.store.wait_searchable(&wanted.space, min_seq, slice).map_err(of_engine)?;
        let stats = service.store.space_stats(&wanted.space).map_err(of_engine)?;
        let there = stats.last_seq >= min_seq.0;
        // Texts that cannot be embedded would make every wait a timeout; the answer says `degraded` instead.
        let failed = service.bulk.failed(&wanted.space);
        if there && (searchable || (failed > 0 && stats.pending <= failed)) {
            return Ok(());
        }
        if Instant::now() >= wanted.until.deadline || service.lifecycle.is_stopping() {
            return Err(past_deadline("everything up to `min_seq` could be found"));
        }
        if searchable {
            std::thread::sleep(slice.saturating_sub(begun.elapsed()));
        }
    }
}

/// What to search with.
struct Embedded<'a> {
    vectors: Vec<Vec<f32>>,
    ran: Option<Box<RawValue>>,
    lease: Option<Lease<'a>>,
}

/// The vectors to search with, and what made them.
fn vectors<'a>(context: &'a Context, wanted: &Wanted) -> Result<Embedded<'a>, RpcError> {
    let service = &context.service;
    let clock = &context.clock;
    match &wanted.what {
        What::Vector(vector) => {
            Ok(Embedded { vectors: vec![vector.clone()], ran: None, lease: None })
        }
        What::Text(query) => {
            clock.skip();
            let embedding = match service.queries.ask(&wanted.space, query, wanted.until.deadline) {
                Asked::First(embedding) => embedding,
                Asked::Kept(vector) => {
                    count(&service.counters.queries_cached, 1);
                    clock.mark(Stage::Embed);
                    let ran = Some(service.embed_cached.clone());
                    return Ok(Embedded { vectors: vec![vector], ran, lease: None });
                }
                Asked::Late => {
                    count(&service.counters.cancelled_deadline, 1);
                    clock.mark(Stage::Queue);
                    return Err(past_deadline("the same query of another was embedded"));
                }
            };
            count(&service.counters.queries_not_cached, 1);
            let asked = interactive::Wanted { until: wanted.until, gone: &|| context.is_gone() };
            let embedded = match service.interactive.embed_query(query, &asked) {
                Ok(embedded) => embedded,
                Err(error) => {
                    // Who ran out of time or was turned away did so in the line for a session.
                    let failed = error.is(ErrorCode::Embedding);
                    clock.mark(if failed { Stage::Embed } else { Stage::Queue });
                    return Err(error);
                }
            };
            clock.mark_with(
                Stage::Embed,
                &[(Stage::Queue, embedded.waited), (Stage::Tokenise, embedded.tokenised)],
            );
            embedding.done(&embedded.vectors);
            Ok(Embedded {
                vectors: embedded.vectors,
                ran: Some(service.embed_ran.clone()),
                lease: embedded.lease,
            })
        }
    }
}

/// The hits, what ran, and how many memories of the space had no vectors yet.
fn dense_search(
    context: &Context,
    wanted: &Wanted,
    vectors: &[Vec<f32>],
) -> Result<(Vec<Hit>, SearchRan, u64), RpcError> {
    let mut found: Vec<Found> = Vec::with_capacity(vectors.len());
    for vector in vectors {
        if Instant::now() >= wanted.until.deadline {
            return Err(past_deadline("the search"));
        }
        let query = Query {
            vector,
            k: wanted.k,
            ef: None,
            filter: wanted.filter.as_ref(),
            time: wanted.time,
            exact: wanted.exact,
        };
        let one = context.service.store.search(&wanted.space, &query);
        found.push(one.map_err(of_engine)?);
    }
    let mut paths: Vec<String> = Vec::new();
    for one in &found {
        let path = one.path.to_string();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    let ran = SearchRan {
        device: "cpu",
        simd: found.first().map(|one| one.simd.to_string()).unwrap_or_default(),
        path: paths.join(", "),
        scanned: Some(found.iter().map(|one| one.scanned).sum()),
        windows: None,
    };
    let waiting = found.iter().map(|one| one.waiting).max().unwrap_or(0);
    Ok((best_of(found, wanted.k), ran, waiting))
}

/// The best score of each memory over all windows of the query.
fn best_of(mut found: Vec<Found>, k: usize) -> Vec<Hit> {
    if found.len() == 1 {
        return found.remove(0).hits;
    }
    let mut best: HashMap<Seq, f32> = HashMap::new();
    for hit in found.iter().flat_map(|one| &one.hits) {
        let score = best.entry(hit.seq).or_insert(hit.score);
        *score = score.max(hit.score);
    }
    let mut hits: Vec<Hit> = best.into_iter().map(|(seq, score)| Hit { seq, score }).collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.seq.cmp(&b.seq)));
    hits.truncate(k);
    hits
}

fn fetch_hits(context: &Context, wanted: &Wanted, hits: &[Hit]) -> Result<Vec<HitOut>, RpcError> {
    let service = &context.service;
    let mut room = Room::new(&service.limits);
    let mut out = Vec::with_capacity(hits.len());
    for chunk in hits.chunks(CHUNK) {
        room.check("k")?;
        let seqs: Vec<Seq> = chunk.iter().map(|hit| hit.seq).collect();
        let found = service.store.fetch(&wanted.space, &seqs).map_err(of_engine)?;
        for (hit, found) in chunk.iter().zip(found) {
            // Deleted between search and fetch: gone is gone.
            let Some(found) = found else { continue };
            room.take(&found);
            let neighbors = match wanted.neighbors {
                Some(span) => Some(fetch_neighbors(context, wanted, hit.seq, span, &mut room)?),
                None => None,
            };
            let found = memory(found)?;
            out.push(HitOut {
                id: found.id,
                score: hit.score,
                text: found.text,
                role: found.role,
                session: found.session,
                ts: found.ts,
                seq: found.seq,
                meta: found.meta,
                neighbors,
                scores: wanted.explain.then_some(Scores { dense: hit.score }),
            });
        }
    }
    Ok(out)
}

fn fetch_neighbors(
    context: &Context,
    wanted: &Wanted,
    seq: Seq,
    (before, after): (usize, usize),
    room: &mut Room,
) -> Result<Neighbors, RpcError> {
    room.check("k` or `neighbors")?;
    let (before, after) =
        context.service.store.neighbors(&wanted.space, seq, before, after).map_err(of_engine)?;
    let mut side = |memories: Vec<flashbulb_engine::Memory>| {
        memories
            .into_iter()
            .map(|found| {
                room.take(&found);
                memory(found)
            })
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Neighbors { before: side(before)?, after: side(after)? })
}

/// What makes this space's answers less than they should be.
fn degraded(context: &Context, space: &SpaceName, waiting: u64) -> Vec<String> {
    let failed = context.service.bulk.failed(space);
    let mut out = Vec::from_iter(context.service.device.degraded());
    if failed > 0 {
        out.push(format!(
            "embedding_failed: {failed} memories of this space could not be embedded and are not found by meaning; `admin.status` says why"
        ));
    }
    if waiting > failed {
        out.push(format!(
            "embedding_pending: {} memories of this space are not found by meaning yet; `min_seq` waits for them",
            waiting - failed
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashbulb_engine::SearchPath;
    use flashbulb_kernels::SimdLevel;

    fn found(hits: &[(u64, f32)]) -> Found {
        Found {
            hits: hits.iter().map(|&(seq, score)| Hit { seq: Seq(seq), score }).collect(),
            path: SearchPath::Scan,
            waiting: 0,
            scanned: 0,
            simd: SimdLevel::Scalar,
        }
    }

    fn seqs(hits: &[Hit]) -> Vec<(u64, f32)> {
        hits.iter().map(|hit| (hit.seq.0, hit.score)).collect()
    }

    #[test]
    fn stages_are_never_more_than_the_total() {
        let ns = Duration::from_nanos;
        let mut stages = Stages::default();
        for stage in [Stage::Queue, Stage::Dense] {
            stages.add(stage, ns(1_900));
        }
        stages.add(Stage::Embed, ns(300));
        let kept = took(&stages, ns(4_200));
        let want = TookUs { queue: 1, embed: 1, dense: 1, total: 4, ..TookUs::default() };
        assert_eq!(kept, want);
        // A kept vector's microsecond is rounded up, and the total with it.
        assert_eq!(took(&stages, ns(2_000)).total, 3);
        assert_eq!(took(&Stages::default(), ns(0)), TookUs::default());
    }

    #[test]
    fn every_window_counts_and_a_memory_has_its_best_score() {
        let windows =
            vec![found(&[(1, 0.9), (2, 0.5), (3, 0.4)]), found(&[(2, 0.8), (4, 0.8), (1, 0.1)])];
        assert_eq!(seqs(&best_of(windows, 3)), [(1, 0.9), (2, 0.8), (4, 0.8)]);
        let one = vec![found(&[(7, 0.1), (5, 0.1)])];
        assert_eq!(seqs(&best_of(one, 3)), [(7, 0.1), (5, 0.1)]);
    }
}
