//! Vectors against the published model's, and their sameness.

use std::collections::HashMap;

use flashbulb::embed::{EmbedError, Helper, Precision};
use serde::Deserialize;

use super::support::{cosine, embedder};

#[derive(Deserialize)]
struct Reference {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    text: String,
    token_ids: Vec<u32>,
    vector: Vec<f32>,
}

/// Vectors of sentence-transformers for texts within one window.
fn reference() -> Vec<Item> {
    let text = include_str!("../fixtures/minilm-reference.json");
    serde_json::from_str::<Reference>(text).unwrap().items
}

/// Mean and least cosine to the reference.
fn agreement(precision: Precision) -> (f64, f64) {
    let embedder = embedder(precision);
    let mut session = embedder.session().unwrap();
    let mut cosines = Vec::new();
    for item in reference() {
        let Ok(windows) = embedder.document_windows(&item.text) else {
            assert!(item.text.trim().is_empty(), "{:?}", item.text);
            continue;
        };
        // The reference cuts at the window; only whole texts compare.
        if windows.len() == 1 {
            let found = cosine(&session.embed(&windows[0]).unwrap(), &item.vector);
            if found < 0.985 {
                println!("{found:.4} {:?}", item.text.chars().take(60).collect::<String>());
            }
            cosines.push(found);
        }
    }
    assert!(cosines.len() >= 20, "only {} texts compared", cosines.len());
    let least = cosines.iter().copied().fold(f64::INFINITY, f64::min);
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    println!("{precision:?}: {} texts, mean {mean:.5}, least {least:.5}", cosines.len());
    (mean, least)
}

#[test]
fn f32_agrees_with_the_published_model() {
    let (_, least) = agreement(Precision::F32);
    assert!(least >= 0.9999, "{least}");
}

#[test]
fn int8_agrees_with_the_published_model() {
    let (mean, least) = agreement(Precision::Int8);
    assert!(mean >= 0.99 && least >= 0.98, "mean {mean}, least {least}");
}

#[test]
fn the_same_text_has_the_same_bits_in_every_session() {
    let embedder = embedder(Precision::Auto);
    let mut sessions = [embedder.session().unwrap(), embedder.session().unwrap()];
    let helper = Helper::start().unwrap();
    for text in ["ok", "Where is the key to the summer house?", &"long ago ".repeat(90)] {
        let windows = embedder.query_windows(text).unwrap();
        let vectors: Vec<_> = sessions.iter_mut().map(|s| s.embed(&windows[0]).unwrap()).collect();
        // Another length in between must not change what follows.
        let other = embedder.query_windows("something else in between").unwrap();
        sessions[0].embed(&other[0]).unwrap();
        assert_eq!(vectors[0], sessions[0].embed(&windows[0]).unwrap(), "{text}");
        assert_eq!(vectors[0], vectors[1], "{text}");
        for _ in 0..20 {
            let _help = helper.borrow();
            assert_eq!(vectors[0], sessions[1].embed(&windows[0]).unwrap(), "with help: {text}");
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores == 1 || helper.helped() > 0, "the helper never helped");
}

#[test]
fn ids_are_those_of_the_published_tokenizer() {
    let embedder = embedder(Precision::Auto);
    let ids = |text: &str| embedder.document_windows(text).unwrap()[0].ids().to_vec();
    let mut compared = 0;
    for item in reference() {
        let windows = embedder.document_windows(&item.text).unwrap();
        if windows.len() == 1 {
            assert_eq!(windows[0].ids(), item.token_ids, "{:?}", item.text);
            compared += 1;
        } else {
            // The reference cut the text; what it kept is the first window.
            assert_eq!(windows[0].ids(), item.token_ids, "{:?}", item.text);
        }
    }
    assert!(compared >= 20);
    assert_eq!(ids("Zürich"), ids("zurich"));
    assert!(matches!(embedder.query_windows(" \n\t"), Err(EmbedError::EmptyText)));
    assert!(matches!(embedder.document_windows(""), Err(EmbedError::EmptyText)));
}

#[test]
fn a_long_text_is_split_and_every_token_covered() {
    let embedder = embedder(Precision::Auto);
    let words: Vec<String> = (0..3000).map(|n| format!("w{n}")).collect();
    let text = words.join(" ");
    let windows = embedder.document_windows(&text).unwrap();
    assert!(windows.len() > 10);
    let mut seen: HashMap<u32, usize> = HashMap::new();
    for window in &windows {
        assert!(window.len() <= embedder.max_tokens());
        assert_eq!((window.ids()[0], window.ids()[window.len() - 1]), (101, 102));
        for &id in window.ids() {
            *seen.entry(id).or_default() += 1;
        }
    }
    // Every word alone gives the ids that must occur somewhere.
    for word in words.iter().step_by(7) {
        for &id in embedder.document_windows(word).unwrap()[0].ids() {
            assert!(seen.contains_key(&id), "{word}: id {id} is in no window");
        }
    }
    // Joined without what each shares with the one before, the windows are the whole text's ids.
    let limit = windows[0].len() - 2;
    let mut joined = windows[0].ids()[1..windows[0].len() - 1].to_vec();
    for window in &windows[1..] {
        joined.extend_from_slice(&window.ids()[1 + limit / 8..window.len() - 1]);
    }
    let alone: Vec<u32> = words
        .iter()
        .flat_map(|word| {
            let ids = embedder.document_windows(word).unwrap()[0].ids().to_vec();
            ids[1..ids.len() - 1].to_vec()
        })
        .collect();
    assert_eq!(joined, alone);
}

#[test]
fn a_megabyte_is_split_in_linear_time() {
    let embedder = embedder(Precision::Auto);
    for text in ["lorem ipsum dolor ".repeat(60_000), "x".repeat(1 << 20), "漢字".repeat(150_000)]
    {
        let started = std::time::Instant::now();
        let windows = embedder.document_windows(&text).unwrap();
        let took = started.elapsed();
        // Quadratic work would take minutes; the bound leaves room for a busy machine.
        assert!(took.as_secs() < 60, "{took:?} for {} windows", windows.len());
        assert!(windows.iter().all(|window| window.len() <= embedder.max_tokens()));
    }
}

#[test]
fn what_ran_is_witnessed() {
    let ran = embedder(Precision::Int8).ran();
    assert!(ran.runtime.starts_with("ONNX Runtime 1."), "{}", ran.runtime);
    assert_eq!(ran.provider, "CPUExecutionProvider");
    assert_eq!((ran.precision.as_str(), ran.dim), ("int8", 384));
    assert_eq!(ran.nodes_by_provider.values().sum::<usize>(), ran.nodes_total);
    assert_eq!(ran.nodes_by_operator["EncoderLayer"], 6);
    assert_eq!((ran.device.as_str(), ran.memcpy_nodes), ("cpu", 0));
    assert_eq!((ran.heavy_nodes, ran.heavy_nodes_on_device), (7, 7), "{ran:?}");
    assert!(ran.nodes_placed["CPUExecutionProvider"] >= 7, "{ran:?}");
    assert!(!ran.nodes_by_operator.contains_key("MatMul"), "{:?}", ran.nodes_by_operator);
    let float = embedder(Precision::F32).ran();
    assert_eq!(float.nodes_by_operator["Attention"], 6);
    // Embeddings and, in each layer, attention, three products, two normalisations and an activation.
    assert_eq!((float.heavy_nodes, float.heavy_nodes_on_device), (43, 43), "{float:?}");
    assert_ne!(embedder(Precision::F32).fingerprint(), embedder(Precision::Int8).fingerprint());
}
