//! Values: a row has the same bytes by stream and by query, and they are what `row_to_json` says.

use super::chance::Chance;
use super::oracle::{Oracle, check_keys, pins};
use super::scalars::SCALARS;
use super::shapes::{Definitions, Shape};

/// How many rows are tried at once.
const ROWS: usize = 25;

/// The first seed, and how many follow it.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")));
    let first = number("ROWCAST_SEED").unwrap_or(0);
    first..first + number("ROWCAST_ROUNDS").unwrap_or(few)
}

/// Fills `t`, whose columns have these shapes, with random rows and compares all readings.
fn compare(oracle: &Oracle, shapes: &[Shape], seed: u64) {
    let mut chance = Chance::new(seed);
    let catalogue = oracle.catalogue();
    let mut expressions: Vec<Vec<String>> = Vec::new();
    let mut statements = String::from("TRUNCATE t;\n");
    for id in 0..ROWS {
        let row: Vec<String> = shapes.iter().map(|shape| shape.expression(&mut chance)).collect();
        statements += &format!("INSERT INTO t VALUES ({id}, {});\n", row.join(", "));
        expressions.push(row);
    }
    let readings = oracle.read(&pins(), &statements);
    assert_eq!(readings.json.len(), ROWS);
    let streamed = readings.streamed(&catalogue).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let queried = readings.queried(&catalogue).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let types = readings.types();
    for (message, json) in readings.inserts().zip(&streamed) {
        check_keys(&catalogue, message, &types, json).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    for (id, expected) in readings.json.iter().enumerate() {
        for (way, found) in [("stream", &streamed[id]), ("query", &queried[id])] {
            if found != expected {
                let at = found.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
                let column = found[..found.floor_char_boundary(at)].matches("\"c").count();
                panic!(
                    "seed {seed}, row {id}, by {way}, about column {column}: found\n{}\nexpected\n{}\nof {:#?}",
                    around(found, at),
                    around(expected, at),
                    expressions[id].get(column.saturating_sub(2)..expressions[id].len().min(column + 1))
                );
            }
        }
    }
}

fn around(text: &str, at: usize) -> &str {
    &text[text.floor_char_boundary(at.saturating_sub(100))..text.ceil_char_boundary((at + 100).min(text.len()))]
}

fn names(shapes: &[Shape]) -> Vec<String> {
    shapes.iter().map(Shape::name).collect()
}

#[test]
fn every_built_in_type_becomes_what_row_to_json_says() {
    let oracle = Oracle::start();
    let shapes: Vec<Shape> = SCALARS.iter().map(Shape::Scalar).chain(Shape::built_in_ranges()).collect();
    oracle.table(&names(&shapes));
    for seed in seeds(8) {
        compare(&oracle, &shapes, seed);
    }
}

#[test]
fn arrays_of_every_type_become_what_row_to_json_says() {
    let oracle = Oracle::start();
    let scalars = SCALARS.iter().map(Shape::Scalar).chain(Shape::built_in_ranges());
    let shapes: Vec<Shape> = scalars.map(|shape| Shape::Array(Box::new(shape))).collect();
    oracle.table(&names(&shapes));
    for seed in seeds(4) {
        compare(&oracle, &shapes, seed);
    }
}

#[test]
fn domains_and_composites_of_every_type_become_what_row_to_json_says() {
    let oracle = Oracle::start();
    let mut made = Definitions::default();
    let mut shapes = Vec::new();
    for scalar in SCALARS {
        let domain = made.domain(Shape::Scalar(scalar));
        let arrays = made.domain(Shape::Array(Box::new(domain.clone())));
        let composite = made.composite(vec![Shape::Scalar(scalar), domain, arrays.clone(), Shape::Array(Box::new(arrays))]);
        shapes.push(made.domain(composite));
    }
    oracle.run(&made.sql);
    oracle.table(&names(&shapes));
    for seed in seeds(2) {
        compare(&oracle, &shapes, seed);
    }
}

#[test]
fn types_within_types_become_what_row_to_json_says() {
    let oracle = Oracle::start();
    for seed in seeds(6) {
        let mut chance = Chance::new(!seed);
        let mut made = Definitions::default();
        let shapes: Vec<Shape> = (0..20).map(|_| made.random(&mut chance, 4)).collect();
        oracle.run(&made.sql);
        oracle.table(&names(&shapes));
        compare(&oracle, &shapes, seed);
        oracle.drop_table();
        oracle.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public;");
        oracle.extensions();
    }
}
