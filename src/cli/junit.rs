//! The results of `ecoloop check` as `JUnit` XML, which CI systems show as tests.

use std::io;
use std::time::Duration;

use ecoloop::check::{Grade, Graded, LEVELS, Language};
use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::format::strip_control;

/// Returns the document: a suite for each level, a case for each check.
pub(super) fn document(results: &[Graded], target: &str, language: Language) -> Result<String, String> {
    let write = || -> io::Result<Vec<u8>> {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
        let name = strip_control(&format!("ecoloop check {target}"));
        let suites = writer.create_element("testsuites").with_attribute(("name", &name[..]));
        let suites = suites.with_attributes(totals(results).iter().map(|(key, value)| (*key, &value[..])));
        suites.write_inner_content(|writer| {
            results
                .chunk_by(|one, next| one.check.level() == next.check.level())
                .try_for_each(|level| write_suite(writer, level, language))
        })?;
        Ok(writer.into_inner())
    };
    let document = write().map_err(|error| format!("no JUnit document: {error}"))?;
    String::from_utf8(document).map(|text| text + "\n").map_err(|error| format!("no JUnit document: {error}"))
}

fn write_suite(writer: &mut Writer<Vec<u8>>, level: &[Graded], language: Language) -> io::Result<()> {
    let Some(number) = level.first().map(|graded| graded.check.level()) else { return Ok(()) };
    let name = format!("{number} {}", LEVELS[usize::from(number) - 1].get(language));
    let suite = writer.create_element("testsuite").with_attribute(("name", &name[..]));
    let counts = totals(level).into_iter().chain([("skipped", count(level, Grade::Skipped))]).collect::<Vec<_>>();
    let suite = suite.with_attributes(counts.iter().map(|(key, value)| (*key, &value[..])));
    suite.write_inner_content(|writer| {
        level.iter().try_for_each(|graded| write_case(writer, &name, graded, language))
    })?;
    Ok(())
}

fn write_case(writer: &mut Writer<Vec<u8>>, suite: &str, graded: &Graded, language: Language) -> io::Result<()> {
    let check = graded.check;
    let case = writer.create_element("testcase").with_attributes([
        ("name", check.name()),
        ("classname", suite),
        ("time", &seconds(graded.elapsed)),
    ]);
    let message = strip_control(&graded.came(language).unwrap_or_default());
    let (element, attribute) = match graded.grade {
        Grade::Ok => return case.write_empty().map(drop),
        Grade::Skipped => ("skipped", true),
        Grade::Fails => ("failure", true),
        // JUnit has no word for it: the case passes, with a note.
        Grade::Late => ("system-out", false),
    };
    case.write_inner_content(|writer| {
        let mut note = writer.create_element(element);
        if attribute {
            note = note.with_attribute(("message", &message[..]));
        }
        if graded.grade == Grade::Skipped {
            return note.write_empty().map(drop);
        }
        let (sent, matters) = (graded.sent(language), check.matters().get(language));
        let text = [sent, &message, matters, &check.read(language)].join("\n");
        note.write_text_content(BytesText::new(&text)).map(drop)
    })?;
    Ok(())
}

/// Returns the attributes that suites and the document have in common.
fn totals(results: &[Graded]) -> [(&'static str, String); 4] {
    [
        ("tests", results.len().to_string()),
        ("failures", count(results, Grade::Fails)),
        ("errors", "0".to_owned()),
        ("time", seconds(results.iter().map(|graded| graded.elapsed).sum())),
    ]
}

fn count(results: &[Graded], grade: Grade) -> String {
    results.iter().filter(|graded| graded.grade == grade).count().to_string()
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::sync::atomic::AtomicBool;

    use ecoloop::check::Grader;
    use ecoloop::{Config, Server};
    use quick_xml::Reader;

    use super::*;

    /// Returns each element with its depth, name and attributes.
    fn elements(document: &str) -> Vec<(usize, String, Vec<String>)> {
        let mut reader = Reader::from_str(document);
        let mut depth = 0;
        let mut elements = Vec::new();
        loop {
            let event = reader.read_event().unwrap();
            if let Event::Start(start) | Event::Empty(start) = &event {
                let attributes = start.attributes().map(|attribute| attribute.unwrap().key.as_ref().to_owned());
                elements.push((depth, start.name().as_ref().to_owned(), attributes.collect()));
            }
            match event {
                Event::Start(_) => depth += 1,
                Event::End(_) => depth -= 1,
                Event::Eof => return elements,
                _ => {}
            }
        }
    }

    #[test]
    fn the_document_is_what_readers_of_junit_expect() {
        let mut config = Config::default();
        // `echo` fails, and so does the client after `one-byte`; `memory` needs a process.
        config.faults = vec!["flip=5".parse().unwrap()];
        let server = Server::bind("127.0.0.1:0", config).unwrap().spawn().unwrap();
        let mut results = Vec::new();
        for name in ["one-byte", "echo", "memory"] {
            let mut grader = Grader::new(vec![server.local_addr()]);
            grader.checks.retain(|check| check.name() == name);
            results.extend(grader.run(&AtomicBool::new(false), |_| ()).unwrap().results);
        }
        let document = document(&results, "<&\">\u{1}", Language::Spanish).unwrap();
        let expected = [
            (0, "testsuites", &["name", "tests", "failures", "errors", "time"][..]),
            (1, "testsuite", &["name", "tests", "failures", "errors", "time", "skipped"]),
            (2, "testcase", &["name", "classname", "time"]),
            (3, "failure", &["message"]),
            (2, "testcase", &["name", "classname", "time"]),
            (3, "failure", &["message"]),
            (1, "testsuite", &["name", "tests", "failures", "errors", "time", "skipped"]),
            (2, "testcase", &["name", "classname", "time"]),
            (3, "skipped", &["message"]),
        ];
        let found = elements(&document);
        let found: Vec<_> = found.iter().map(|(depth, name, keys)| (*depth, &name[..], keys.clone())).collect();
        let expected =
            expected.map(|(depth, name, keys)| (depth, name, keys.iter().map(ToString::to_string).collect()));
        assert_eq!(found, expected, "{document}");
        assert!(
            document.contains("name=\"ecoloop check &lt;&amp;&quot;&gt;\u{fffd}\" tests=\"3\" failures=\"2\""),
            "{document}"
        );
        assert!(document.contains("message=\"necesita --pid\""), "{document}");
    }
}
