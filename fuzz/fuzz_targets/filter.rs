//! The filter language: what parses is what the documents say, and matches what they say.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use flashbulb_engine::{Filter, fuzz};
use flashbulb_fuzz::naive_filter::{Fields, holds};
use flashbulb_fuzz::raw_or_choices;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Number, Value};

fuzz_target!(|input: &[u8]| {
    let Some((raw, rest)) = raw_or_choices(input) else { return };
    if raw {
        // A line with the filter, and one with the meta.
        let mut lines = rest.splitn(2, |b| *b == b'\n');
        let Some(Ok(filter)) = lines.next().map(serde_json::from_slice::<Value>) else { return };
        let meta = lines
            .next()
            .and_then(|line| serde_json::from_slice(line).ok())
            .filter(Value::is_object);
        check(&filter, &Fields { role: Some("user".into()), session: None, meta });
    } else {
        let mut choices = Unstructured::new(rest);
        let Ok(fields) = fields(&mut choices) else { return };
        if let Ok(filter) = filter(&mut choices, 0) {
            check(&filter, &fields);
        }
    }
});

fn check(json: &Value, of: &Fields) {
    let expected = holds(json, of);
    match Filter::parse(json) {
        Ok(filter) => {
            let found =
                fuzz::matches(&filter, of.role.as_deref(), of.session.as_deref(), of.meta.as_ref());
            assert_eq!(Some(found), expected, "{json} of {of:?}");
        }
        Err(error) => assert_eq!(expected, None, "{json} was refused: {error}"),
    }
}

const WORDS: [&str; 8] = ["", "a", "b", "user", "tool", "ü", "a.b", "10"];
const NUMBERS: [&str; 20] = [
    "0",
    "-0.0",
    "1",
    "1.0",
    "-1",
    "10",
    "1.5",
    "-1.5",
    "9007199254740992",
    "9007199254740993",
    "9007199254740992.0",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "-9223372036854775809",
    "1e308",
    "-1e308",
    "5e-324",
];
const FIELDS: [&str; 10] = [
    "role",
    "session",
    "meta.a",
    "meta.b",
    "meta.a.b",
    "meta.",
    "meta",
    "meta.a..b",
    "colour",
    "meta.ü",
];
const OPERATORS: [&str; 10] = ["eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "exists", "like"];

fn fields(c: &mut Unstructured<'_>) -> Result<Fields> {
    let word = |c: &mut Unstructured<'_>| -> Result<Option<String>> {
        Ok(if c.arbitrary()? { Some(c.choose(&WORDS)?.to_string()) } else { None })
    };
    let (role, session) = (word(c)?, word(c)?);
    let meta = if c.arbitrary()? { Some(object(c, 0)?) } else { None };
    Ok(Fields { role, session, meta })
}

fn object(c: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    let mut members = Map::new();
    for _ in 0..c.int_in_range(0..=3)? {
        members.insert((*c.choose(&["a", "b", "ü"])?).into(), value(c, depth + 1)?);
    }
    Ok(Value::Object(members))
}

fn value(c: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    let most = if depth > 3 { 5 } else { 7 };
    Ok(match c.int_in_range(0..=most)? {
        0 => Value::Null,
        1 => Value::Bool(c.arbitrary()?),
        2 => serde_json::from_str(c.choose(&NUMBERS)?).expect("they are numbers"),
        3 => i64::arbitrary(c)?.into(),
        4 => Number::from_f64(c.arbitrary()?).map_or(Value::Null, Value::Number),
        5 => (*c.choose(&WORDS)?).into(),
        6 => {
            let len = c.int_in_range(0..=3)?;
            Value::Array((0..len).map(|_| value(c, depth + 1)).collect::<Result<_>>()?)
        }
        _ => object(c, depth)?,
    })
}

/// Mostly a filter; a rare part of it is not of the language.
fn filter(c: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    if c.ratio(1, 50)? {
        return value(c, 0);
    }
    let mut members = Map::new();
    for _ in 0..c.int_in_range(1..=2)? {
        let kind = c.int_in_range(0..=if depth > 40 { 0 } else { 5 })?;
        let (key, inner) = match kind {
            4 => ("not", filter(c, depth + 1)?),
            5 => {
                let len = c.int_in_range(0..=4)?;
                let list = (0..len).map(|_| filter(c, depth + 1)).collect::<Result<Vec<_>>>()?;
                (if c.arbitrary()? { "and" } else { "or" }, Value::Array(list))
            }
            _ => (*c.choose(&FIELDS)?, operators(c)?),
        };
        members.insert(key.into(), inner);
    }
    Ok(Value::Object(members))
}

fn operators(c: &mut Unstructured<'_>) -> Result<Value> {
    let mut members = Map::new();
    for _ in 0..c.int_in_range(1..=2)? {
        let name = *c.choose(&OPERATORS)?;
        let operand = match name {
            "in" | "nin" if c.ratio(9, 10)? => {
                let len = c.int_in_range(0..=3)?;
                Value::Array((0..len).map(|_| value(c, 1)).collect::<Result<_>>()?)
            }
            "exists" if c.ratio(9, 10)? => Value::Bool(c.arbitrary()?),
            _ => value(c, 1)?,
        };
        members.insert(name.into(), operand);
    }
    Ok(Value::Object(members))
}
