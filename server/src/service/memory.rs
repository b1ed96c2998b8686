//! Methods that store, give back, change and delete memories.
//!
//! Invariant: an answer to a write means that the store's log was synced. What was stored durably but is not searchable in
//! time is an error that says `durable`, so that nobody stores it again for nothing. It must not know how text becomes
//! vectors.

use crate::rpc::params::{
    AddParams, AroundParams, DeleteParams, GetParams, ListParams, OnConflict, UpdateParams, Wait,
};
use crate::rpc::results::{
    AddResult, AddedItem, AddedStatus, DeleteResult, ItemsResult, UpdateResult,
};
use crate::rpc::{ErrorCode, RpcError};
use crate::service::clock::Stage;
use crate::service::counters::count;
use crate::service::errors::of_engine;
use crate::service::lanes::bulk::Reserved;
use crate::service::lanes::line::Until;
use crate::service::lanes::{self, interactive};
use crate::service::output::{CHUNK, Room, memory};
use crate::service::{Context, Service, validate};
use flashbulb_engine as engine;
use flashbulb_engine::{Added, Error, NewMemory, RequestId, Selection, Seq, SpaceName};
use serde_json::json;
use std::time::{Duration, Instant};

/// When to try again after `Busy` for memories without vectors: a few texts are embedded by then.
const PENDING_RETRY_MS: u64 = 250;

/// How often a wait looks whether it has become pointless.
const SLICE: Duration = Duration::from_millis(250);

/// Handles `memory.add`.
///
/// # Errors
/// −32602, `Conflict`, `Busy`, and what the log says; with `wait = searchable` also `DeadlineExceeded` and `Embedding`
/// with `durable` in their data.
pub fn add(context: &Context, params: AddParams) -> Result<AddResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    let mut items = params.items;
    let mut how = How::Add(on_conflict(params.on_conflict));
    if let Some(key) = &params.idempotency_key {
        validate::key(key, params.on_conflict, &service.limits)?;
        how = How::Once(validate::request(key, &items));
        validate::name_items(&space, key, &mut items);
    }
    let items = validate::items(items, &service.limits)?;
    let small = lanes::is_small(&items);
    let bare = items.iter().filter(|item| item.vectors.is_none()).count();
    let reserved = (bare > 0).then(|| reserve_pending(service, bare, small)).transpose()?;
    let waits = params.wait == Wait::Searchable;
    let inline = small && waits;
    let front = small || (waits && lanes::may_overtake(&items));
    let texts: Vec<String> =
        if inline { items.iter().map(|item| item.text.clone()).collect() } else { Vec::new() };
    context.clock.skip();
    let added = store(service, &space, items, how);
    context.clock.mark(Stage::Store);
    let added = added?;
    let waiting: Vec<Seq> =
        added.items.iter().filter(|item| item.needs_vectors).map(|item| item.seq).collect();
    let left = if inline { embed_inline(context, &space, &added, &texts) } else { waiting };
    if left.is_empty() {
        service.background.wake();
    } else {
        service.bulk.added(&space, &left, front);
        // They are counted as pending now; a long wait must not count them twice.
        drop(reserved);
        if waits {
            let there = wait_for(context, &space, &left);
            context.clock.mark(Stage::Queue);
            there.map_err(|error| durable(error, added.seq))?;
        }
    }
    Ok(AddResult { seq: added.seq.0, items: added.items.into_iter().map(added_item).collect() })
}

/// Texts wait in the store, but what waits must stay bounded: beyond the limit the client waits instead. Holds the places
/// of `count` texts until they are counted as waiting, so that many who add at once do not pass the limit together.
pub(crate) fn reserve_pending(
    service: &Service,
    count: usize,
    small: bool,
) -> Result<Reserved, RpcError> {
    let reserve = if small { service.limits.pending_reserve } else { 0 };
    let limit = service.limits.pending_memories + reserve;
    let busy = || RpcError::busy("memories not embedded yet", limit, PENDING_RETRY_MS);
    service.bulk.reserve(count, limit).ok_or_else(busy)
}

/// How memories are to be stored.
pub(crate) enum How {
    /// As if nothing like it had been asked before.
    Add(engine::OnConflict),
    /// Not again, if it was.
    Once(RequestId),
}

fn on_conflict(asked: OnConflict) -> engine::OnConflict {
    match asked {
        OnConflict::Error => engine::OnConflict::Error,
        OnConflict::Skip => engine::OnConflict::Skip,
        OnConflict::Replace => engine::OnConflict::Replace,
    }
}

/// Stores memories and counts them.
pub(crate) fn store(
    service: &Service,
    space: &SpaceName,
    items: Vec<NewMemory>,
    how: How,
) -> Result<Added, RpcError> {
    let added = match how {
        How::Add(on_conflict) => service.store.add(space, items, on_conflict),
        How::Once(request) => service.store.add_once(space, items, request),
    };
    let added = added.map_err(of_engine)?;
    let stored =
        added.items.iter().filter(|item| item.status != engine::AddStatus::Skipped).count();
    count(&service.counters.memories_added, stored as u64);
    Ok(added)
}

fn added_item(item: engine::AddedItem) -> AddedItem {
    AddedItem {
        id: item.id,
        status: match item.status {
            engine::AddStatus::Added => AddedStatus::Added,
            engine::AddStatus::Skipped => AddedStatus::Skipped,
            engine::AddStatus::Replaced => AddedStatus::Replaced,
        },
    }
}

/// The vectors of one small text from the space itself or from the interactive lane; `None` leaves it to the bulk lane.
fn embed_or_leave(context: &Context, space: &SpaceName, text: &str) -> Option<Vec<Vec<f32>>> {
    let service = &context.service;
    if let Ok(Some(vectors)) = service.store.vectors_of_text(space, text) {
        count(&service.counters.texts_reused, 1);
        return Some(vectors);
    }
    let wanted = interactive::Wanted {
        until: Until {
            deadline: context.arrived() + Duration::from_millis(service.limits.searchable_wait_ms),
            promise: Some(Duration::from_millis(service.limits.promise_ms)),
        },
        // It is stored already, and shall be found whether or not somebody waits for it.
        gone: &|| false,
    };
    let clock = &context.clock;
    clock.skip();
    match service.interactive.embed_document(text, &wanted) {
        Ok(embedded) => {
            clock.mark_with(
                Stage::Embed,
                &[(Stage::Queue, embedded.waited), (Stage::Tokenise, embedded.tokenised)],
            );
            Some(embedded.vectors)
        }
        Err(error) => {
            if error.is(ErrorCode::Embedding) {
                clock.mark(Stage::Embed);
                tracing::warn!(%error, "a text is left to the bulk lane");
            } else {
                clock.mark(Stage::Queue);
                tracing::debug!(%error, "a text is left to the bulk lane");
            }
            None
        }
    }
}

/// Embeds a small add in the interactive lane; what could not be is left to the bulk lane.
fn embed_inline(context: &Context, space: &SpaceName, added: &Added, texts: &[String]) -> Vec<Seq> {
    let service = &context.service;
    let mut left = Vec::new();
    let mut ready = Vec::new();
    for (item, text) in added.items.iter().zip(texts).filter(|(item, _)| item.needs_vectors) {
        match embed_or_leave(context, space, text) {
            Some(vectors) => ready.push((item.seq, vectors)),
            None => left.push(item.seq),
        }
    }
    let seqs: Vec<Seq> = ready.iter().map(|(seq, _)| *seq).collect();
    context.clock.skip();
    let stored = service.store.set_vectors(space, ready);
    context.clock.mark(Stage::Store);
    if let Err(error) = stored {
        tracing::warn!(%error, "vectors of an add were not stored; the bulk lane makes them again");
        left.extend(seqs);
    }
    left
}

/// Waits until these memories of an add can be found.
fn wait_for(context: &Context, space: &SpaceName, seqs: &[Seq]) -> Result<(), RpcError> {
    context.stop_counting();
    let service = &context.service;
    let limit = Duration::from_millis(service.limits.searchable_wait_ms);
    let deadline = context.arrived() + limit;
    let Some(&last) = seqs.iter().max() else {
        return Ok(());
    };
    loop {
        let slice = deadline.saturating_duration_since(Instant::now()).min(SLICE);
        match service.store.wait_searchable(space, last, slice) {
            Ok(true) => return Ok(()),
            // Dropped meanwhile: nothing is left to wait for.
            Err(Error::NoSuchSpace { .. }) => return Ok(()),
            Err(error) => return Err(of_engine(error)),
            Ok(false) => {}
        }
        // An older memory that cannot be embedded must not hold up these.
        let failed = service.bulk.failed(space);
        if failed > 0 && all_searchable(service, space, seqs)? {
            return Ok(());
        }
        if service.lifecycle.is_stopping() {
            return Err(RpcError::new(
                ErrorCode::ShuttingDown,
                "stored durably; the service is stopping and embeds the text after its next start",
            ));
        }
        if Instant::now() >= deadline {
            return Err(RpcError::new(
                ErrorCode::DeadlineExceeded,
                format!(
                    "stored durably, but not searchable within {} ms ({failed} texts of the space could not be embedded); it will be without another add",
                    service.limits.searchable_wait_ms
                ),
            ));
        }
    }
}

fn all_searchable(service: &Service, space: &SpaceName, seqs: &[Seq]) -> Result<bool, RpcError> {
    for chunk in seqs.chunks(CHUNK) {
        let found = service.store.fetch(space, chunk).map_err(of_engine)?;
        if found.iter().flatten().any(|memory| !memory.searchable) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Marks an error after the memories were stored.
fn durable(error: RpcError, seq: Seq) -> RpcError {
    error.with_data(json!({ "what": "wait", "durable": true, "seq": seq.0 }))
}

/// Handles `memory.get`.
///
/// # Errors
/// −32602, `NoSuchSpace`, `LimitExceeded`.
pub fn get(context: &Context, params: GetParams) -> Result<ItemsResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    validate::ids(&params.ids, &service.limits)?;
    context.clock.skip();
    let mut room = Room::new(&service.limits);
    let mut items = Vec::with_capacity(params.ids.len());
    for ids in params.ids.chunks(CHUNK) {
        room.check("ids")?;
        for found in service.store.get(&space, ids).map_err(of_engine)? {
            if let Some(found) = &found {
                room.take(found);
            }
            items.push(found.map(memory).transpose()?);
        }
    }
    context.clock.mark(Stage::Fetch);
    Ok(ItemsResult { items, cursor: None })
}

/// Handles `memory.list`.
///
/// # Errors
/// −32602, `NoSuchSpace`.
pub fn list(context: &Context, params: ListParams) -> Result<ItemsResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    let filter = validate::filter(params.filter.as_ref())?;
    let limit = validate::number("limit", params.limit, 1, service.limits.list)?;
    let mut after = params.cursor.as_deref().map(cursor).transpose()?;
    context.clock.skip();
    let mut room = Room::new(&service.limits);
    let mut items = Vec::new();
    loop {
        let want = CHUNK.min(limit - items.len());
        let page =
            service.store.list(&space, filter.as_ref(), None, after, want).map_err(of_engine)?;
        for found in page.items {
            room.take(&found);
            items.push(Some(memory(found)?));
        }
        after = page.next;
        if after.is_none() || items.len() >= limit || room.is_full() {
            context.clock.mark(Stage::Fetch);
            return Ok(ItemsResult { items, cursor: after.map(|seq| seq.0.to_string()) });
        }
    }
}

fn cursor(text: &str) -> Result<Seq, RpcError> {
    text.parse()
        .map(Seq)
        .map_err(|_| RpcError::invalid("cursor", "not one that `memory.list` gave"))
}

/// Handles `memory.around`.
///
/// # Errors
/// −32602, `NoSuchSpace`, `NoSuchMemory`, `LimitExceeded`.
pub fn around(context: &Context, params: AroundParams) -> Result<ItemsResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    validate::id("id", &params.id, &service.limits)?;
    let before = validate::number("before", params.before, 0, service.limits.around)?;
    let after = validate::number("after", params.after, 0, service.limits.around)?;
    context.clock.skip();
    let mut room = Room::new(&service.limits);
    let mut items = Vec::new();
    let found = service.store.around(&space, &params.id, before, after).map_err(of_engine)?;
    for found in found {
        room.check("before` and `after")?;
        room.take(&found);
        items.push(Some(memory(found)?));
    }
    context.clock.mark(Stage::Fetch);
    Ok(ItemsResult { items, cursor: None })
}

/// Handles `memory.update`.
///
/// # Errors
/// −32602, `NoSuchSpace`, `NoSuchMemory`, `SeqMismatch`, `Busy`, and what the log says.
pub fn update(context: &Context, params: UpdateParams) -> Result<UpdateResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    validate::id("id", &params.id, &service.limits)?;
    let mut patch = validate::patch(params.patch, &service.limits)?;
    let mut _reserved = None;
    if let (Some(text), None) = (&patch.text, &patch.vectors) {
        _reserved = Some(reserve_pending(service, 1, true)?);
        // With its vectors the new version replaces the old one without a moment in which neither is found.
        if lanes::is_small_text(text) {
            patch.text_vectors = embed_or_leave(context, &space, text);
        }
    }
    context.clock.skip();
    let updated = service.store.update(&space, &params.id, patch, params.if_seq.map(Seq));
    context.clock.mark(Stage::Store);
    let updated = updated.map_err(of_engine)?;
    if updated.needs_vectors {
        service.bulk.added(&space, &[updated.seq], true);
    } else {
        service.background.wake();
    }
    Ok(UpdateResult { updated: 1, seq: updated.seq.0 })
}

/// Handles `memory.delete`.
///
/// # Errors
/// −32602, `NoSuchSpace`, `ExpectCount`, and what the log says.
pub fn delete(context: &Context, params: DeleteParams) -> Result<DeleteResult, RpcError> {
    let service = &context.service;
    let space = validate::space(&params.space)?;
    let what = match (params.ids, validate::filter(params.filter.as_ref())?) {
        (Some(ids), None) => {
            validate::ids(&ids, &service.limits)?;
            Selection::Ids(ids)
        }
        (None, Some(filter)) => Selection::Filter(filter),
        (Some(_), Some(_)) => {
            return Err(RpcError::invalid("ids", "give either `ids` or `filter`, not both"));
        }
        (None, None) => {
            return Err(RpcError::invalid("ids", "give either `ids` or `filter`"));
        }
    };
    context.clock.skip();
    let deleted = service.store.delete(&space, &what, params.dry_run, params.expect_count);
    context.clock.mark(Stage::Store);
    let deleted = deleted.map_err(of_engine)?;
    if !params.dry_run {
        service.background.wake();
    }
    Ok(DeleteResult {
        matched: deleted.matched,
        deleted: deleted.deleted,
        missing: deleted.missing,
    })
}
