//! The language by examples, most of them those by which the web UI documents it, and by properties of any text.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use sd_models::text::{
    Piece,
    Weighting::{self, A1111, ComfyUi},
};

use super::{PromptWeighting, pieces, timeline, weight::MAX_WEIGHT};

/// Pieces as pairs; `None` is a break.
fn weighed(text: &str, weighting: Weighting) -> Vec<Option<(String, f64)>> {
    let pieces = pieces(text, weighting).into_iter();
    pieces
        .map(|piece| match piece {
            Piece::Text { text, weight } => Some((text, weight)),
            Piece::Break => None,
        })
        .collect()
}

#[track_caller]
fn check_weights(weighting: Weighting, text: &str, expected: &[(&str, f64)]) {
    let found = weighed(text, weighting);
    let same = |(found, expected): (&Option<(String, f64)>, &(&str, f64))| match found {
        Some((text, weight)) => text == expected.0 && (weight - expected.1).abs() < 1e-9,
        None => expected.0 == "BREAK" && expected.1 == -1.0,
    };
    assert!(
        found.len() == expected.len() && found.iter().zip(expected).all(same),
        "{text:?}: {found:?}, expected {expected:?}"
    );
}

const BREAK: (&str, f64) = ("BREAK", -1.0);

#[test]
fn weights_are_those_of_the_web_ui() {
    let cases: &[(&str, &[(&str, f64)])] = &[
        ("", &[]),
        ("normal text", &[("normal text", 1.0)]),
        // Brackets and numbers.
        (
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        ),
        ("((a))", &[("a", 1.21)]),
        ("[a]", &[("a", 1.0 / 1.1)]),
        ("[[a]]", &[("a", 1.0 / 1.21)]),
        ("([a])", &[("a", 1.0)]),
        ("(a:1.5)", &[("a", 1.5)]),
        ("(a: 1.5 )", &[("a", 1.5)]),
        ("(a:.5)(b:2.)(c:+3)", &[("a", 0.5), ("b", 2.0), ("c", 3.0)]),
        ("(a:-1)", &[("a", -1.0)]),
        ("(a:0)", &[("a", 0.0)]),
        ("((a:1.5))", &[("a", 1.65)]),
        ("((a:2):3)", &[("a", 6.0)]),
        ("(a (b:2) c:3)", &[("a ", 3.0), ("b", 6.0), (" c", 3.0)]),
        ("(a:b:2)", &[("a:b", 2.0)]),
        ("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]),
        ("(a:1)b", &[("ab", 1.0)]),
        ("()[](:2)", &[]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        // What looks like a number, and is none.
        ("(a:b)", &[("a:b", 1.1)]),
        ("(a:)", &[("a:", 1.1)]),
        ("(a:.)", &[("a:.", 1.1)]),
        ("(a:1.2.3)", &[("a:1.2.3", 1.1)]),
        ("(a:1,2)", &[("a:1,2", 1.1)]),
        ("(a:1e3)", &[("a:1e3", 1.1)]),
        ("(a:inf)", &[("a:inf", 1.1)]),
        ("(a:-NaN)", &[("a:-NaN", 1.1)]),
        ("(a:2(b))", &[("a:2", 1.1), ("b", 1.21)]),
        ("(a:2[])", &[("a:2", 1.1)]),
        ("a:1.2)", &[("a:1.2)", 1.0)]),
        ("[a:1.2x]", &[("a:1.2x", 1.0 / 1.1)]),
        // Too large.
        ("(a:1000000000000)", &[("a", MAX_WEIGHT)]),
        ("((a:999):-999)", &[("a", -MAX_WEIGHT)]),
        ("(((a:0):999):999)", &[("a", 0.0)]),
        // Brackets without a partner.
        ("(unbalanced", &[("unbalanced", 1.1)]),
        ("[unbalanced", &[("unbalanced", 1.0 / 1.1)]),
        ("a) b]", &[("a) b]", 1.0)]),
        ("(a))", &[("a", 1.1), (")", 1.0)]),
        ("((a)", &[("a", 1.21)]),
        ("(a [b) c]", &[("a ", 1.1), ("b", 1.0), (" c", 1.0 / 1.1)]),
        ("((((", &[]),
        ("))]]", &[("))]]", 1.0)]),
        // Escapes.
        (r"\(literal\]", &[("(literal]", 1.0)]),
        (r"(a \(b\):2)", &[("a (b)", 2.0)]),
        (r"(a:2\)", &[("a:2)", 1.1)]),
        (r"\\(a)", &[("\\", 1.0), ("a", 1.1)]),
        (r"(a\:2)", &[("a", 2.0)]),
        (r"a\|b\:c", &[("a|b:c", 1.0)]),
        (r"a\b\", &[("ab", 1.0)]),
        // Other scripts.
        (
            "(猫:1.2)と[犬]🐱",
            &[("猫", 1.2), ("と", 1.0), ("犬", 1.0 / 1.1), ("🐱", 1.0)],
        ),
        ("(é：1.2)", &[("é：1.2", 1.1)]),
        ("(a:１.２)", &[("a:１.２", 1.1)]),
        // Breaks.
        ("a BREAK b", &[("a", 1.0), BREAK, ("b", 1.0)]),
        ("BREAK", &[BREAK]),
        (
            "a\n BREAK\tBREAK b",
            &[("a", 1.0), BREAK, BREAK, ("b", 1.0)],
        ),
        ("(a BREAK b:2)", &[("a", 2.0), BREAK, ("b", 2.0)]),
        ("a BREAKFAST break", &[("a BREAKFAST break", 1.0)]),
        ("éBREAK _BREAK BREAK2", &[("éBREAK _BREAK BREAK2", 1.0)]),
        (",BREAK.", &[(",", 1.0), BREAK, (".", 1.0)]),
        (r"B\REAK", &[("BREAK", 1.0)]),
    ];
    for (text, expected) in cases {
        check_weights(A1111, text, expected);
    }
}

#[test]
fn weights_are_those_of_comfyui() {
    let cases: &[(&str, &[(&str, f64)])] = &[
        ("", &[]),
        ("a (b) c", &[("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((a))", &[("a", 1.21)]),
        ("(a:1.5)", &[("a", 1.5)]),
        // A number counts as it is, whatever is outside.
        ("((a:1.5):2)", &[("a", 1.5)]),
        (
            "(a (b:2) (c):3)",
            &[("a ", 3.0), ("b", 2.0), (" ", 3.0), ("c", 3.3)],
        ),
        ("(a:inf)", &[("a:inf", 1.1)]),
        ("[a] [[b]]", &[("[a] [[b]]", 1.0)]),
        // Brackets without a partner are text.
        ("(a", &[("(a", 1.0)]),
        ("((a)", &[("(", 1.0), ("a", 1.1)]),
        ("a) (b)", &[("a) ", 1.0), ("b", 1.1)]),
        (r"\(a\) \b", &[(r"(a) \b", 1.0)]),
        (r"(a\:2) \|", &[("a:2", 1.1), (" |", 1.0)]),
        ("a BREAK b", &[("a BREAK b", 1.0)]),
    ];
    for (text, expected) in cases {
        check_weights(ComfyUi, text, expected);
    }
}

/// Where the text changes: the last step of each, counted from 1, and the text.
fn spans(text: &str, weighting: PromptWeighting, passes: &[usize]) -> Vec<(usize, String)> {
    let timeline = timeline("prompt", &[text], weighting, passes).unwrap();
    let ends = timeline.changes().chain([passes.iter().sum()]);
    let texts = timeline.values().map(|texts| texts[0].clone());
    ends.zip(texts).collect()
}

#[test]
fn edits_are_those_of_the_web_ui() {
    // Of ten steps.
    let cases: &[(&str, &[(usize, &str)])] = &[
        ("test", &[(10, "test")]),
        ("", &[(10, "")]),
        ("a [b:3]", &[(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", &[(3, "a "), (10, "a b")]),
        ("a [b::3]", &[(3, "a b"), (10, "a ")]),
        ("a [[[b]]:2]", &[(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", &[(3, ""), (10, "(a:2)")]),
        ("[(a:2):(b:3):4]", &[(4, "(a:2)"), (10, "(b:3)")]),
        ("a [b : c : 1] d", &[(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", &[(1, "abe"), (2, "ace"), (10, "ade")]),
        (
            "[[a:b:2]:[c:d:8]:5]",
            &[(2, "a"), (5, "b"), (8, "c"), (10, "d")],
        ),
        ("([a:b:5]:1.2)", &[(5, "(a:1.2)"), (10, "(b:1.2)")]),
        ("[猫:犬:0.5]🐱", &[(5, "猫🐱"), (10, "犬🐱")]),
        // Times.
        ("a [b:.5] c", &[(5, "a  c"), (10, "a b c")]),
        ("[a:b:0.99]", &[(9, "a"), (10, "b")]),
        ("[a:b:1.0]", &[(10, "a")]),
        ("[a:b:1]", &[(1, "a"), (10, "b")]),
        ("[a:b:0]", &[(10, "b")]),
        ("[a:b:0.0]", &[(10, "b")]),
        ("[a:b:0.09]", &[(10, "b")]),
        ("[a:b:-3]", &[(10, "b")]),
        ("[a:b:999999999999999999999]", &[(10, "a")]),
        ("[a:b:+4]", &[(4, "a"), (10, "b")]),
        ("[a:b:2.]", &[(10, "a")]),
        // Alternation.
        (
            "[a|(b:1.1)]",
            &[
                (1, "a"),
                (2, "(b:1.1)"),
                (3, "a"),
                (4, "(b:1.1)"),
                (5, "a"),
                (6, "(b:1.1)"),
                (7, "a"),
                (8, "(b:1.1)"),
                (9, "a"),
                (10, "(b:1.1)"),
            ],
        ),
        (
            "[fe|||]male",
            &[
                (1, "female"),
                (4, "male"),
                (5, "female"),
                (8, "male"),
                (9, "female"),
                (10, "male"),
            ],
        ),
        (
            "[[a|b]:c:4]",
            &[(1, "a"), (2, "b"), (3, "a"), (4, "b"), (10, "c")],
        ),
        (
            "[a|[b:c:7]]",
            &[
                (1, "a"),
                (2, "b"),
                (3, "a"),
                (4, "b"),
                (5, "a"),
                (6, "b"),
                (7, "a"),
                (8, "c"),
                (9, "a"),
                (10, "c"),
            ],
        ),
        // Neither.
        ("a [unbalanced", &[(10, "a [unbalanced")]),
        ("((a][:b:c [d:3]", &[(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a (b:c:3]", &[(10, "[a (b:c:3]")]),
        ("[a ) b:c:3]", &[(10, "[a ) b:c:3]")]),
        ("a | b: [c:d:5]", &[(5, "a | b: c"), (10, "a | b: d")]),
        ("[a:b]", &[(10, "[a:b]")]),
        ("[a:b:c:5]", &[(10, "[a:b:c:5]")]),
        ("[a:b:1e1]", &[(10, "[a:b:1e1]")]),
        ("[a:b:inf]", &[(10, "[a:b:inf]")]),
        ("[a:b:nan]", &[(10, "[a:b:nan]")]),
        ("[a:b:(5)]", &[(10, "[a:b:(5)]")]),
        ("[a:b|c]", &[(10, "[a:b|c]")]),
        ("[]", &[(10, "[]")]),
        ("[:5]", &[(10, "")]),
        ("[::5]", &[(10, "")]),
        ("[5]", &[(10, "[5]")]),
        ("a [{b|d{:.5] c", &[(5, "a  c"), (10, "a {b|d{ c")]),
        (r"[a\:b:c:5]", &[(5, r"a\:b"), (10, "c")]),
        (r"\[a:b:5]", &[(10, r"\[a:b:5]")]),
        (r"\\[a:b:5]", &[(5, r"\\a"), (10, r"\\b")]),
        (r"[a\|b|c\]", &[(10, r"[a\|b|c\]")]),
    ];
    for (text, expected) in cases {
        for weighting in [PromptWeighting::A1111, PromptWeighting::ComfyUi] {
            let found = spans(text, weighting, &[10]);
            let found: Vec<_> = found
                .iter()
                .map(|(end, text)| (*end, text.as_str()))
                .collect();
            assert_eq!(found, *expected, "{text:?}, {weighting:?}");
        }
        let plain = spans(text, PromptWeighting::Plain, &[10]);
        assert_eq!(plain, [(10, text.to_string())]);
    }
}

/// 4 steps, then 6.
#[test]
fn a_second_pass_continues_the_count() {
    for (text, expected) in [
        ("[a:b:2]", vec![(2, "a"), (10, "b")]),
        ("[a:b:7]", vec![(7, "a"), (10, "b")]),
        ("[a:b:.5]", vec![(2, "a"), (10, "b")]),
        ("[a:b:1.5]", vec![(7, "a"), (10, "b")]),
        ("[a:b:2.0]", vec![(10, "a")]),
        (
            "[a|b|c]",
            vec![
                (1, "a"),
                (2, "b"),
                (3, "c"),
                // The next pass starts anew, with the same part as the last one ended.
                (5, "a"),
                (6, "b"),
                (7, "c"),
                (8, "a"),
                (9, "b"),
                (10, "c"),
            ],
        ),
    ] {
        let found = spans(text, PromptWeighting::A1111, &[4, 6]);
        let found: Vec<_> = found
            .iter()
            .map(|(end, text)| (*end, text.as_str()))
            .collect();
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn a_run_without_steps_has_a_text() {
    let timeline = timeline("prompt", &["[a|b]"], PromptWeighting::A1111, &[]).unwrap();
    assert_eq!(timeline.at(0)[0], "a");
}

#[test]
fn prompts_of_two_encoders_change_together() {
    let prompts = ["[a:b:1]", "[c:d:2]"];
    let timeline = timeline("prompt", &prompts, PromptWeighting::A1111, &[3]).unwrap();
    let texts: Vec<_> = timeline.values().map(|texts| texts.join(" ")).collect();
    assert_eq!(texts, ["a c", "b c", "b d"]);
}

#[test]
fn a_hundred_thousand_brackets_take_no_stack_and_little_time() {
    let start = Instant::now();
    let n = 100_000;
    for text in [
        "(".repeat(n),
        "[".repeat(n),
        ")".repeat(n),
        "(a".repeat(n),
        "([".repeat(n / 2),
        format!("{}a{}", "(".repeat(n), ")".repeat(n)),
        format!("{}a{}", "(".repeat(n), ":0.5)".repeat(n)),
        format!("{}a{}", "[".repeat(n), "]".repeat(n)),
        format!("{}a{}", "[".repeat(n), ":b:5]".repeat(n)),
        format!("{}a{}", "[".repeat(n), "|b]".repeat(n)),
        "[a|b]".repeat(n / 10),
        "[:".repeat(n),
        "\\".repeat(n),
        "BREAK ".repeat(n),
        "x".repeat(n),
    ] {
        for weighting in [PromptWeighting::A1111, PromptWeighting::ComfyUi] {
            let timeline = timeline("prompt", &[&text], weighting, &[5]).unwrap();
            let text = &timeline.at(3)[0];
            pieces(text, weighting.weighting().unwrap());
        }
    }
    // It is half a second; quadratic time would be minutes.
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_thousand_steps_share_their_texts() {
    let long = " a cat".repeat(10_000);
    let texts = |prompt: &str| {
        timeline(
            "prompt",
            &[&format!("{prompt}{long}")],
            PromptWeighting::A1111,
            &[1000, 1000],
        )
    };
    let two = texts("[a|b]").unwrap();
    assert_eq!(two.changes().count(), 1999);
    let kept: HashSet<_> = two.values().map(Arc::as_ptr).collect();
    assert_eq!(kept.len(), 2);
    // A text of its own in nearly every step.
    let error = texts("[a|b|c|d|e|f|g][a|b|c|d|e|f|g|h][a|b|c|d|e|f|g|h|i]").unwrap_err();
    assert!(
        error.to_string().starts_with("prompt: got edits"),
        "{error}"
    );
}

/// Strings of what means something, and of anything.
fn any_prompt() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec![
            "(", ")", "[", "]", ":", "|", "\\", "BREAK", " ", ",", "1.5", "0.5", "3", "-", ".", "cat", "猫", "\n",
        ])
        .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => (-1e6_f64..1e6).prop_map(|number| number.to_string()),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

fn any_weighting() -> impl Strategy<Value = PromptWeighting> {
    prop::sample::select(vec![
        PromptWeighting::Plain,
        PromptWeighting::A1111,
        PromptWeighting::ComfyUi,
    ])
}

proptest! {
    #[test]
    fn any_string_is_a_prompt(text in any_prompt(), weighting in any_weighting(), steps in 1_usize..20) {
        for (_, pieces) in weighting.read(&text, steps).unwrap() {
            let mut last = None;
            for piece in pieces {
                if let Piece::Text { text, weight } = &piece {
                    prop_assert!(weight.abs() <= MAX_WEIGHT, "{weight}");
                    prop_assert!(!text.is_empty());
                    prop_assert!(last != Some(*weight), "{text:?} is not joined");
                }
                last = match piece {
                    Piece::Text { weight, .. } => Some(weight),
                    Piece::Break => None,
                };
            }
        }
    }

    /// Without the special characters nothing is lost or invented: the steps' texts are made of the prompt's characters, in
    /// their order.
    #[test]
    fn every_text_is_made_of_its_prompt(text in any_prompt(), weighting in any_weighting()) {
        for texts in timeline("prompt", &[&text], weighting, &[7]).unwrap().values() {
            let mut rest = text.chars();
            prop_assert!(texts[0].chars().all(|character| rest.any(|other| other == character)));
        }
    }

    #[test]
    fn text_is_itself_again_after_an_escape(text in prop_oneof![any_prompt(), any::<String>()], weighting in any_weighting()) {
        let escaped = weighting.escape(&text);
        let expected = match text.is_empty() {
            true => vec![],
            false => vec![Piece::Text { text, weight: 1.0 }],
        };
        prop_assert_eq!(weighting.read(&escaped, 7).unwrap(), vec![(0, expected)]);
    }
}
