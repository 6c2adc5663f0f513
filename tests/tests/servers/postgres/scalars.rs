//! The built-in types that have no parts, and how to write random values of them in SQL.

use super::chance::Chance;

/// A type, and what makes an expression of it.
pub struct Scalar {
    pub name: &'static str,
    /// Makes an SQL expression; a cast to the type follows.
    pub expression: fn(&mut Chance) -> String,
    /// Whether two values of it can be compared, so that it can be spanned by a range.
    pub ordered: bool,
}

/// As an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(chance: &mut Chance) -> String {
    quoted(&chance.text())
}

fn point(chance: &mut Chance) -> String {
    format!("point({},{})", float(chance), float(chance))
}

fn points(chance: &mut Chance) -> String {
    let points: Vec<String> = (0..chance.count(1..=3)).map(|_| format!("({},{})", chance.float(), chance.float())).collect();
    points.join(",")
}

fn float(chance: &mut Chance) -> String {
    format!("'{}'::float8", chance.float())
}

fn inet(chance: &mut Chance) -> String {
    if chance.one_in(2) {
        let bytes: Vec<String> = (0..4).map(|_| chance.byte().to_string()).collect();
        format!("'{}/{}'::inet", bytes.join("."), chance.count(0..=32))
    } else {
        let parts: Vec<String> = (0..8).map(|_| if chance.one_in(2) { "0".to_owned() } else { chance.hex(2) }).collect();
        format!("'{}/{}'::inet", parts.join(":"), chance.count(0..=128))
    }
}

fn time(chance: &mut Chance) -> String {
    if chance.one_in(20) {
        return "24:00:00".to_owned();
    }
    let fraction = if chance.one_in(2) { String::new() } else { format!(".{}", chance.digits(6)) };
    format!("{:02}:{:02}:{:02}{fraction}", chance.count(0..=23), chance.count(0..=59), chance.count(0..=59))
}

fn timetz(chance: &mut Chance) -> String {
    let zone = chance.of(&["+00", "-08", "+05:30", "+15:59:59", "-15:59"]);
    format!("'{}{zone}'", time(chance))
}

fn path(chance: &mut Chance) -> String {
    let points = points(chance);
    quoted(&if chance.one_in(2) { format!("[{points}]") } else { format!("({points})") })
}

/// `json`, unlike `jsonb`, also takes what no text can hold.
fn json(chance: &mut Chance) -> String {
    let odd = chance.of(&[r#""\ud800""#, r#"{"\udc00":"\u0000"}"#]);
    quoted(&if chance.one_in(8) { odd.to_owned() } else { chance.json(3) })
}

/// Every moment that there is, also in the years Before Christ.
fn moment(chance: &mut Chance) -> String {
    match chance.count(0..=6) {
        0 => quoted(chance.of(&["infinity", "-infinity", "0044-03-15 01:02:03 BC", "0001-12-31 23:59:59.999999 BC", "epoch"])),
        1..=3 => {
            format!("timestamp '2026-01-01' + interval '{} microseconds'", chance.integer(-2_000_000_000_000_000..=2_000_000_000_000_000))
        }
        _ => {
            let us = chance.integer(-211_813_488_000_000_000..=9_223_371_331_199_999_999);
            format!("timestamp '2000-01-01' + interval '{us} microseconds'")
        }
    }
}

fn date(chance: &mut Chance) -> String {
    match chance.count(0..=4) {
        0 => quoted(chance.of(&["infinity", "-infinity", "0044-03-15 BC"])),
        1 => format!("date '4714-11-24 BC' + {}", chance.integer(0..=2_147_483_493)),
        _ => format!("date '2026-01-01' + {}", chance.integer(-100_000..=100_000)),
    }
}

fn interval(chance: &mut Chance) -> String {
    let (months, days) = (chance.integer(-2_000_000_000..=2_000_000_000), chance.integer(-2_000_000_000..=2_000_000_000));
    match chance.count(0..=3) {
        0 => format!("'{months} months {days} days {} microseconds'", chance.integer(-(1 << 60)..=1 << 60)),
        1 => format!("'{} months'", chance.integer(-50..=50)),
        2 => format!("'{} days -{}'", chance.integer(-50..=50), time(chance)),
        _ => quoted(&time(chance)),
    }
}

fn numbers(chance: &mut Chance, most: i64) -> String {
    let numbers: Vec<String> = (0..chance.count(0..=4)).map(|_| chance.integer(0..=most).to_string()).collect();
    quoted(&numbers.join(" "))
}

fn lexemes(chance: &mut Chance) -> String {
    let lexemes: Vec<String> = (0..chance.count(0..=3)).map(|_| quoted(&format!("{}x", chance.text()))).collect();
    format!(
        "array_to_tsvector(ARRAY[{}]::text[])",
        lexemes.iter().filter(|lexeme| lexeme.len() < 2000).cloned().collect::<Vec<_>>().join(",")
    )
}

fn pairs(chance: &mut Chance) -> String {
    let pair = |chance: &mut Chance| (text(chance), if chance.one_in(4) { "NULL".to_owned() } else { text(chance) });
    let (keys, values): (Vec<String>, Vec<String>) = (0..chance.count(0..=3)).map(|_| pair(chance)).unzip();
    format!("public.hstore(ARRAY[{}]::text[], ARRAY[{}]::text[])", keys.join(","), values.join(","))
}

fn bits(chance: &mut Chance, count: usize) -> String {
    format!("B'{}'", (0..count).map(|_| chance.of(&["0", "1"])).collect::<String>())
}

macro_rules! scalars {
    ($($name:literal $ordered:ident $expression:expr;)*) => {
        &[$(Scalar { name: $name, expression: $expression, ordered: scalars!(@ $ordered) }),*]
    };
    (@ ordered) => { true };
    (@ plain) => { false };
}

pub const SCALARS: &[Scalar] = scalars! {
    "bool" plain |chance| chance.of(&["true", "false"]).to_owned();
    "int2" ordered |chance| format!("({})", chance.integer(-32_768..=32_767));
    "int4" ordered |chance| format!("({})", chance.integer(-2_147_483_648..=2_147_483_647));
    "int8" ordered |chance| quoted(&chance.integer(i64::MIN..=i64::MAX).to_string());
    "numeric" ordered |chance| quoted(&chance.numeric());
    "numeric(20,5)" plain |chance| format!("{}.{}", chance.integer(-99_999_999..=99_999_999), chance.digits(7));
    "float4" ordered |chance| {
        let number = chance.float();
        let fits = number.parse::<f64>().is_ok_and(|number| number == 0.0 || !number.is_finite() || (1e-37..1e37).contains(&number.abs()));
        quoted(if fits { &number } else { "3.4028235e38" })
    };
    "float8" ordered |chance| quoted(&chance.float());
    "text" ordered text;
    "varchar(20000)" plain text;
    "bpchar(3)" plain |chance| quoted(&chance.text().chars().take(2).collect::<String>());
    "name" ordered |chance| quoted(&chance.text().chars().take(10).collect::<String>());
    "\"char\"" plain |chance| format!("({})::int4", chance.integer(-128..=127));
    "bytea" plain |chance| { let length = chance.count(0..=40); format!("'\\x{}'", chance.hex(length)) };
    "date" ordered date;
    "time" ordered |chance| quoted(&time(chance));
    "time(2)" plain |chance| quoted(&time(chance));
    "timetz" ordered timetz;
    "timestamp" ordered moment;
    "timestamp(3)" plain |chance| format!("timestamp '2026-01-01' + interval '{} microseconds'", chance.integer(-(1 << 50)..=1 << 50));
    "timestamptz" ordered moment;
    "interval" ordered interval;
    "uuid" ordered |chance| quoted(&chance.hex(16));
    "json" plain json;
    "jsonb" plain |chance| quoted(&chance.json(3).replace("1e400", "1e40"));
    "inet" ordered inet;
    "cidr" plain |chance| format!("network({})", inet(chance));
    "macaddr" ordered |chance| quoted(&chance.hex(6));
    "macaddr8" ordered |chance| quoted(&chance.hex(8));
    "bit(7)" plain |chance| bits(chance, 7);
    "varbit" plain |chance| { let count = chance.count(0..=20); bits(chance, count) };
    "money" ordered |chance| format!("'{}.{}'::numeric", chance.integer(-(i64::MAX / 101)..=i64::MAX / 101), chance.digits(2));
    "xml" plain |chance| format!("xmlelement(name a, xmlattributes({} AS b), {})", quoted(&chance.words()), quoted(&chance.words()));
    "tsvector" plain lexemes;
    "tsquery" plain |chance| format!("to_tsquery('simple', 'a & !b <-> c') && plainto_tsquery('simple', {})", quoted(&chance.words()));
    "point" plain point;
    "line" plain |chance| format!("'{{{},1,{}}}'", chance.float(), chance.float());
    "lseg" plain |chance| format!("lseg({},{})", point(chance), point(chance));
    "box" plain |chance| format!("box({},{})", point(chance), point(chance));
    "path" plain path;
    "polygon" plain |chance| quoted(&format!("({})", points(chance)));
    "circle" plain |chance| format!("circle({}, abs({}))", point(chance), float(chance));
    "int2vector" plain |chance| numbers(chance, 32_767);
    "oidvector" plain |chance| numbers(chance, 4_294_967_295);
    "oid" plain |chance| quoted(&chance.integer(0..=4_294_967_295).to_string());
    "xid" plain |chance| quoted(&chance.integer(0..=4_294_967_295).to_string());
    "cid" plain |chance| quoted(&chance.integer(0..=4_294_967_295).to_string());
    "xid8" ordered |chance| quoted(chance.of(&["0", "7", "18446744073709551615"]));
    "tid" plain |chance| format!("'({},{})'", chance.integer(0..=4_294_967_295), chance.integer(0..=65_535));
    "pg_lsn" ordered |chance| quoted(chance.of(&["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"]));
    "pg_snapshot" plain |_| "'10:20:10,14'".to_owned();
    "regclass" plain |chance| quoted(chance.of(&["pg_class", "public.plain", "public.\"Odd \"\" {name}\"", "4294967295"]));
    "regtype" plain |chance| quoted(chance.of(&["int4", "public.hstore", "timestamp with time zone", "text[]"]));
    "regproc" plain |chance| quoted(chance.of(&["pg_catalog.now", "public.hstore_to_json", "0"]));
    "jsonpath" plain |chance| quoted(chance.of(&["$.\"a b\"[*] ? (@ > 1)", "strict $"]));
    "refcursor" plain text;
    "aclitem" plain |_| "'postgres=arw*/postgres'".to_owned();
    "public.hstore" plain pairs;
    "public.citext" plain text;
    "public.ltree" plain |chance| quoted(chance.of(&["", "a.b_1.C", "Top"]));
    "public.cube" plain |chance| format!("public.cube(ARRAY[{},{}])", float(chance), float(chance));
    "information_schema.sql_identifier" plain |chance| quoted(&chance.text().chars().take(10).collect::<String>());
    "information_schema.cardinal_number" plain |chance| chance.integer(0..=9).to_string();
};

/// The built-in ranges, and what they span.
pub const RANGES: &[(&str, &str, &str)] = &[
    ("int4range", "int4multirange", "int4"),
    ("int8range", "int8multirange", "int8"),
    ("numrange", "nummultirange", "numeric"),
    ("tsrange", "tsmultirange", "timestamp"),
    ("tstzrange", "tstzmultirange", "timestamptz"),
    ("daterange", "datemultirange", "date"),
];
