//! Texts that show which activation channels of a model run hot.
//!
//! Very short texts matter most: with few tokens around, the special tokens' outliers set the scale. Changing the
//! list changes every int8 vector: count [`GRAPH_VERSION`](crate::model::GRAPH_VERSION) up with it. It must not know
//! any model.

/// The texts, in no particular order.
pub const TEXTS: [&str; 28] = [
    "ok",
    "hi!",
    "Yes.",
    "Paris",
    "thanks a lot",
    "What time is it?",
    "2 + 2 = 4",
    "I moved to Lisbon last spring and work for a small bakery now.",
    "Remember that my sister Ana is allergic to peanuts.",
    "The deployment failed again because the certificate had expired on Sunday.",
    "Can you recommend a quiet restaurant near the old harbour for four people?",
    "Yesterday we hiked up to the lake, it rained the whole day, and still nobody wanted to turn back.",
    "fn main() { println!(\"{}\", args.len()); }",
    "SELECT name, count(*) FROM users WHERE created > '2024-01-01' GROUP BY name;",
    "Error: connection refused (os error 111) at 192.168.0.17:8080",
    "https://example.org/a/b?c=1&d=2#part",
    "Das Treffen wurde auf nächsten Donnerstag um halb drei verschoben.",
    "Je préfère le train, même si le voyage dure plus longtemps.",
    "¿Dónde guardaste las llaves del coche?",
    "我昨天买了一本关于天文学的书。",
    "明日の会議は何時からですか。",
    "Сегодня очень холодно, возьми шапку.",
    "😀🎉 that made my day!!!",
    "To do: buy milk, eggs, bread, 3 kg of flour, olive oil; call the dentist; renew the passport",
    "John: are you coming to the party on Friday?\nMary: I would love to, but my flight lands at midnight.",
    "The mitochondrion produces most of the chemical energy that a cell needs, stored in adenosine triphosphate.",
    "In 1969, Apollo 11 carried Neil Armstrong, Buzz Aldrin and Michael Collins to the Moon; the landing was watched by \
     about 600 million people around the world, and the samples they brought back are still being studied.",
    "I have been thinking about what you said regarding the budget. If we delay the second phase until October, the \
     team could finish the migration first, which would spare us from running two systems side by side. On the other \
     hand, the client expects a demo in August, so perhaps we should at least prepare a small prototype by then.",
];
