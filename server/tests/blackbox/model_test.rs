//! Random sequences of operations against the naive model, over the socket, one space a case.
//!
//! Invariant checked: after every step, every read answers what the model holds. Vectors are the caller's own, so no
//! time goes into embedding. A failure prints the shortest sequence proptest found.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::client::Conn;
use crate::daemon::shared;
use crate::data::{T0, counts, ids, list_all, seqs, space};
use crate::model::{Memory, Model, Query};

const IDS: usize = 14;
const CASES: u32 = 40;

#[derive(Debug, Clone)]
enum Step {
    Add {
        items: Vec<(usize, Memory)>,
        on_conflict: &'static str,
        searchable: bool,
    },
    Update {
        id: usize,
        role: Option<String>,
        ts: Option<i64>,
        n: i64,
        set_opt: Option<i64>,
        if_seq: i64,
    },
    Delete {
        ids: Vec<usize>,
    },
    DeleteWhere {
        filter: Value,
        dry_run: bool,
        expect_off_by: Option<i64>,
    },
    Drop,
}

/// What is asked after each step.
#[derive(Debug, Clone)]
struct Probe {
    query: Query,
    limit: usize,
    around: (usize, usize, usize),
}

fn name(i: usize) -> String {
    format!("id-{i}")
}

fn memory() -> impl Strategy<Value = Memory> {
    let words = (
        select(vec!["user", "assistant", "tool"]),
        select(vec!["s1", "s2", "s3"]),
        select(vec!["a", "b", "ü"]),
    );
    let numbers =
        (0..40_i64, -5..20_i64, any::<bool>(), proptest::option::of(0..5_i64), 0..500_u64);
    (words, numbers).prop_map(|((role, session, tag), (ts, n, flag, opt, vector_seed))| Memory {
        text: format!("text {n} {tag} {vector_seed}"),
        role: role.to_owned(),
        session: session.to_owned(),
        ts: T0 + ts * 10,
        n,
        tag: tag.to_owned(),
        flag,
        opt,
        vector_seed,
    })
}

fn leaf() -> impl Strategy<Value = Value> {
    let text = |field: &'static str, words: Vec<&'static str>| {
        let many = subsequence(words.clone(), 1..=words.len());
        (select(words), many, select(vec!["eq", "ne", "in", "nin"])).prop_map(
            move |(one, many, op)| {
                let arg = if op.len() == 2 && op != "in" { json!(one) } else { json!(many) };
                json!({field: {op: arg}})
            },
        )
    };
    let number = |field: &'static str| {
        (select(vec!["eq", "gt", "gte", "lt", "lte"]), -6..21_i64)
            .prop_map(move |(op, n)| json!({field: {op: n}}))
    };
    prop_oneof![
        text("role", vec!["user", "assistant", "tool", "nobody"]),
        text("session", vec!["s1", "s2", "s3"]),
        text("meta.tag", vec!["a", "b", "ü"]),
        number("meta.n"),
        number("meta.opt"),
        (-6..10_i64, 0..12_i64)
            .prop_map(|(from, width)| json!({"meta.n": {"gte": from, "lt": from + width}})),
        proptest::collection::vec(-5..20_i64, 1..4).prop_map(|v| json!({"meta.n": {"in": v}})),
        any::<bool>().prop_map(|b| json!({"meta.flag": {"eq": b}})),
        any::<bool>().prop_map(|b| json!({"meta.opt": {"exists": b}})),
    ]
}

fn filter() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|v| json!({"and": v})),
            proptest::collection::vec(inner.clone(), 1..4).prop_map(|v| json!({"or": v})),
            inner.prop_map(|f| json!({"not": f})),
        ]
    })
}

fn step() -> impl Strategy<Value = Step> {
    let some_ids = || subsequence((0..IDS).collect::<Vec<_>>(), 1..6);
    let batch = some_ids().prop_flat_map(|ids| {
        let n = ids.len();
        (Just(ids), proptest::collection::vec(memory(), n))
            .prop_map(|(ids, m)| ids.into_iter().zip(m).collect())
    });
    prop_oneof![
        8 => (batch, select(vec!["error", "skip", "replace", "replace"]), any::<bool>())
            .prop_map(|(items, on_conflict, searchable)| Step::Add { items, on_conflict, searchable }),
        4 => (0..IDS, proptest::option::of(select(vec!["user".to_owned(), "editor".to_owned()])),
              proptest::option::of(0..40_i64), -5..20_i64, proptest::option::of(0..5_i64), -1..5_i64)
            .prop_map(|(id, role, ts, n, set_opt, if_seq)| Step::Update { id, role, ts, n, set_opt, if_seq }),
        3 => some_ids().prop_map(|ids| Step::Delete { ids }),
        2 => (filter(), any::<bool>(), proptest::option::of(prop_oneof![3 => Just(0_i64), 1 => Just(1_i64)]))
            .prop_map(|(filter, dry_run, expect_off_by)| Step::DeleteWhere { filter, dry_run, expect_off_by }),
        1 => Just(Step::Drop),
    ]
}

fn probe() -> impl Strategy<Value = Probe> {
    let time =
        (0..40_i64, 0..40_i64).prop_map(|(from, width)| (from * 10, (from + width) * 10 + 5));
    let query = (
        0..500_u64,
        prop_oneof![1..6_usize, Just(1000)],
        proptest::option::of(filter()),
        proptest::option::of(time),
    );
    (query, 1..7_usize, (0..IDS, 0..5_usize, 0..5_usize)).prop_map(
        |((vector_seed, k, filter, time), limit, around)| Probe {
            query: Query { vector_seed, k, filter, time },
            limit,
            around,
        },
    )
}

struct Case {
    conn: Conn,
    space: String,
    model: Option<Model>,
}

impl Case {
    fn apply(&mut self, step: &Step) {
        if self.model.is_none() && !matches!(step, Step::Add { .. }) {
            self.refuse_unknown_space(step);
            return;
        }
        match step {
            Step::Add { items, on_conflict, searchable } => {
                self.add(items, on_conflict, *searchable)
            }
            Step::Update { id, role, ts, n, set_opt, if_seq } => {
                self.update(&name(*id), role.as_ref(), *ts, *n, *set_opt, *if_seq);
            }
            Step::Delete { ids } => {
                let names: Vec<String> = ids.iter().map(|i| name(*i)).collect();
                let model = self.model.as_mut().unwrap();
                let n = names.iter().filter(|id| model.remove(id)).count();
                let result =
                    self.conn.ok("memory.delete", json!({"space": self.space, "ids": names}));
                assert!(counts(&result, n), "{n} were deleted: {result}");
            }
            Step::DeleteWhere { filter, dry_run, expect_off_by } => {
                self.delete_where(filter, *dry_run, *expect_off_by)
            }
            Step::Drop => {
                self.conn.ok("space.drop", json!({"space": self.space}));
                self.model = None;
            }
        }
    }

    fn refuse_unknown_space(&mut self, step: &Step) {
        let (method, rest) = match step {
            Step::Update { id, .. } => {
                ("memory.update", json!({"id": name(*id), "patch": {"role": "x"}}))
            }
            Step::Delete { ids } => ("memory.delete", json!({"ids": [name(ids[0])]})),
            Step::DeleteWhere { filter, .. } => ("memory.delete", json!({"filter": filter})),
            _ => ("space.drop", json!({})),
        };
        let mut params = rest;
        params["space"] = json!(self.space);
        self.conn.err(method, params).assert_own();
    }

    fn add(&mut self, items: &[(usize, Memory)], on_conflict: &str, searchable: bool) {
        let conflict =
            |model: &Model| items.iter().any(|(i, _)| model.held.contains_key(&name(*i)));
        let params = json!({
            "space": self.space, "on_conflict": on_conflict, "wait": if searchable { "searchable" } else { "durable" },
            "items": items.iter().map(|(i, m)| m.item(&name(*i))).collect::<Vec<_>>(),
        });
        if on_conflict == "error" && self.model.as_ref().is_some_and(conflict) {
            self.conn.err("memory.add", params).assert_own();
            return;
        }
        let result = self.conn.ok("memory.add", params);
        let names: Vec<String> = items.iter().map(|(i, _)| name(*i)).collect();
        assert_eq!(ids(&result["items"]), names, "statuses come in the order of the items");
        let seq = result["seq"].as_u64().expect("add answers a seq");
        if !searchable {
            let params = json!({"space": self.space, "vector": items[0].1.item("x")["vector"], "min_seq": seq});
            self.conn.ok("memory.search", params);
        }
        let model = self.model.get_or_insert_default();
        let mut written = Vec::new();
        for (i, memory) in items {
            let replace = on_conflict == "replace" || !model.held.contains_key(&name(*i));
            if replace {
                model.held.insert(name(*i), memory.clone());
                written.push(name(*i));
            }
        }
        self.learn(&written, seq);
    }

    /// Reads back the seqs of what was written and checks that they only grow.
    fn learn(&mut self, written: &[String], seq: u64) {
        if written.is_empty() {
            return;
        }
        let model = self.model.as_mut().unwrap();
        let got = self.conn.ok("memory.get", json!({"space": self.space, "ids": written}))["items"]
            .clone();
        for (id, seq) in written.iter().zip(seqs(&got)) {
            model.learn_seq(id, seq, true);
        }
        let highest = model.order.values().copied().max().unwrap_or(0).max(model.highest_seq);
        assert!(seq >= highest, "the answered seq {seq} covers what was written, up to {highest}");
        model.highest_seq = highest;
    }

    fn update(
        &mut self,
        id: &str,
        role: Option<&String>,
        ts: Option<i64>,
        n: i64,
        set_opt: Option<i64>,
        if_seq: i64,
    ) {
        let model = self.model.as_mut().unwrap();
        let Some(old) = model.held.get(id) else {
            let params = json!({"space": self.space, "id": id, "patch": {"role": "x"}});
            self.conn.err("memory.update", params).assert_own();
            return;
        };
        let mut new = old.clone();
        new.n = n;
        // A memory keeps its `opt`: whether a patch of meta replaces or merges is not this test's question.
        new.opt = set_opt.or(new.opt);
        let mut patch = json!({"meta": new.meta()});
        if let Some(role) = role {
            new.role.clone_from(role);
            patch["role"] = json!(role);
        }
        if let Some(ts) = ts {
            new.ts = T0 + ts * 10;
            patch["ts"] = json!(new.ts);
        }
        let mut params = json!({"space": self.space, "id": id, "patch": patch});
        if if_seq >= 0 {
            params["if_seq"] = json!(model.order[id] + u64::try_from(if_seq).unwrap());
        }
        if if_seq > 0 {
            self.conn.err("memory.update", params).assert_own();
            return;
        }
        self.conn.ok("memory.update", params);
        model.held.insert(id.to_owned(), new);
        self.learn(&[id.to_owned()], u64::MAX);
    }

    fn delete_where(&mut self, filter: &Value, dry_run: bool, expect_off_by: Option<i64>) {
        let model = self.model.as_mut().unwrap();
        let doomed = model.matching(filter);
        let mut params = json!({"space": self.space, "filter": filter, "dry_run": dry_run});
        if let Some(off) = expect_off_by {
            params["expect_count"] = json!(i64::try_from(doomed.len()).unwrap() + off);
        }
        if expect_off_by.is_some_and(|off| off != 0) {
            self.conn.err("memory.delete", params).assert_own();
            return;
        }
        let result = self.conn.ok("memory.delete", params);
        assert!(counts(&result, doomed.len()), "{} match {filter}: {result}", doomed.len());
        if !dry_run {
            doomed.iter().for_each(|id| assert!(model.remove(id)));
        }
    }

    fn check(&mut self, probe: &Probe) {
        let all: Vec<String> = (0..IDS).map(name).collect();
        let space = self.space.clone();
        let Some(model) = &self.model else {
            self.conn.err("memory.list", json!({"space": space})).assert_own();
            self.conn.err("memory.search", probe.query.params(&space)).assert_own();
            return;
        };
        let got = self.conn.ok("memory.get", json!({"space": space, "ids": all}))["items"].clone();
        for (id, answered) in all.iter().zip(got.as_array().expect("items")) {
            match model.held.get(id) {
                Some(memory) => memory.assert_same(id, answered),
                None => assert!(answered.is_null(), "{id} is not there: {answered}"),
            }
        }
        let order = model.by_order();
        assert_eq!(
            ids(&list_all(&mut self.conn, &space, probe.limit).into()),
            order,
            "list by pages of {}",
            probe.limit
        );
        if let Some(filter) = &probe.query.filter {
            let listed = self
                .conn
                .ok("memory.list", json!({"space": space, "filter": filter, "limit": 1000}));
            assert_eq!(ids(&listed["items"]), model.matching(filter), "list where {filter}");
        }
        let hits = self.conn.ok("memory.search", probe.query.params(&space))["hits"].clone();
        model.assert_top_k(&probe.query, hits.as_array().expect("hits"));
        let (centre, before, after) = probe.around;
        let params = json!({"space": space, "id": name(centre), "before": before, "after": after});
        match order.iter().position(|id| *id == name(centre)) {
            None => drop(self.conn.err("memory.around", params)),
            Some(at) => {
                let want = &order[at.saturating_sub(before)..order.len().min(at + after + 1)];
                assert_eq!(
                    ids(&self.conn.ok("memory.around", params)["items"]),
                    want,
                    "around {centre}"
                );
            }
        }
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let config = Config {
        cases: CASES,
        max_shrink_iters: 300,
        failure_persistence: None,
        ..Config::default()
    };
    let steps = proptest::collection::vec((step(), probe()), 5..45);
    let ran = TestRunner::new(config).run(&steps, |steps| {
        let mut case = Case { conn: shared().conn(), space: space("model"), model: None };
        for (step, probe) in &steps {
            case.apply(step);
            case.check(probe);
        }
        Ok(())
    });
    if let Err(e) = ran {
        panic!("{e}");
    }
}
