//! The results of a run, in a few lines and as a document.

use std::fmt;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use super::{Grade, Graded, Language};

/// The results of a run.
///
/// It is displayed in a few lines, for a failed assertion, and serialized as the document of `ecoloop check --json`.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The server.
    pub target: String,
    /// Whether the run was interrupted: the checks after that are missing.
    pub interrupted: bool,
    /// The checks that have run or were skipped, in order.
    pub results: Vec<Graded>,
    /// The language of the document.
    pub language: Language,
}

impl Report {
    /// Returns whether no check failed, in a run that was not interrupted. A check that was late or skipped did not fail.
    #[must_use]
    pub fn passed(&self) -> bool {
        !self.interrupted && !self.failed()
    }

    /// Returns whether a check failed.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.count(Grade::Fails) > 0
    }

    /// Returns the number of checks with this result.
    #[must_use]
    pub fn count(&self, grade: Grade) -> usize {
        self.results.iter().filter(|graded| graded.grade == grade).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.failed(), self.interrupted) {
            (true, _) => "FAIL",
            (false, true) => "INTERRUPTED",
            (false, false) => "PASS",
        };
        let [ok, fails, late, skipped] =
            [Grade::Ok, Grade::Fails, Grade::Late, Grade::Skipped].map(|grade| self.count(grade));
        write!(formatter, "{verdict}: {ok} ok, {fails} failed, {late} late, {skipped} skipped, of {}", self.target)?;
        for graded in self.results.iter().filter(|graded| matches!(graded.grade, Grade::Fails | Grade::Late)) {
            let came = graded.came(Language::English).unwrap_or_default();
            write!(formatter, "\n{} {}: {came}", graded.check.name(), graded.grade.name())?;
        }
        Ok(())
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let checks: Vec<_> = self.results.iter().map(|graded| Row { graded, language: self.language }).collect();
        let mut document = serializer.serialize_struct("Report", 3)?;
        document.serialize_field("target", &self.target)?;
        document.serialize_field("interrupted", &self.interrupted)?;
        document.serialize_field("checks", &checks)?;
        document.end()
    }
}

struct Row<'a> {
    graded: &'a Graded,
    language: Language,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (Graded { check, grade, elapsed, .. }, language) = (self.graded, self.language);
        let mut row = serializer.serialize_struct("Check", 9)?;
        row.serialize_field("name", check.name())?;
        row.serialize_field("level", &check.level())?;
        row.serialize_field("result", grade.name())?;
        row.serialize_field("seconds", &elapsed.as_secs_f64())?;
        row.serialize_field("proves", check.proves().get(language))?;
        row.serialize_field("sends", self.graded.sent(language))?;
        row.serialize_field("came", &self.graded.came(language))?;
        row.serialize_field("matters", check.matters().get(language))?;
        row.serialize_field("read", &check.read(language))?;
        row.end()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::super::{Finding, all};
    use super::*;

    fn report(grades: &[Grade], interrupted: bool) -> Report {
        let row = |&grade| Graded {
            check: all().next().unwrap(),
            grade,
            elapsed: Duration::ZERO,
            is_unix: false,
            finding: Finding::Nothing,
        };
        let results = grades.iter().map(row).collect();
        Report { target: ":5000".to_owned(), interrupted, results, language: Language::English }
    }

    #[test]
    fn a_run_passes_unless_a_check_fails_or_it_is_interrupted() {
        let no_failure = [Grade::Ok, Grade::Late, Grade::Skipped];
        assert!(report(&[], false).passed());
        assert!(report(&no_failure, false).passed());
        assert!(!report(&no_failure, true).passed());
        assert!(!report(&[Grade::Ok, Grade::Fails], false).passed());
    }
}
