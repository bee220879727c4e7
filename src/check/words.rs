//! The two languages of the grader's words.

/// A language of the grader's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Language {
    /// English
    English,
    /// Spanish
    Spanish,
}

/// A sentence in both languages.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    en: &'static str,
    es: &'static str,
    /// The sentence about a Unix socket, where it differs.
    on_unix: Option<(&'static str, &'static str)>,
}

impl Words {
    pub(super) const fn new(en: &'static str, es: &'static str) -> Self {
        Self { en, es, on_unix: None }
    }

    pub(super) const fn on_unix(self, en: &'static str, es: &'static str) -> Self {
        Self { on_unix: Some((en, es)), ..self }
    }

    pub(super) fn about(self, is_unix: bool) -> Self {
        self.on_unix.filter(|_| is_unix).map_or(self, |(en, es)| Self::new(en, es))
    }

    /// Returns the sentence in one language: where the transport matters, that about TCP.
    #[must_use]
    pub const fn get(self, language: Language) -> &'static str {
        match language {
            Language::English => self.en,
            Language::Spanish => self.es,
        }
    }
}

/// The names of the levels, from level 1.
pub const LEVELS: &[Words] = &[
    Words::new("echo", "eco"),
    Words::new("several clients", "varios clientes"),
    Words::new("streams", "flujos de bytes"),
    Words::new("pressure", "presión"),
    Words::new("endings", "finales"),
    Words::new("fairness", "equidad"),
    Words::new("many", "muchos"),
    Words::new("shortage", "escasez"),
];

/// A chapter of the course.
#[derive(Clone, Copy)]
pub(super) struct Chapter {
    folder: &'static str,
    title: Words,
}

impl Chapter {
    const fn new(folder: &'static str, en: &'static str, es: &'static str) -> Self {
        Self { folder, title: Words::new(en, es) }
    }

    /// Returns its number, its title and its file.
    pub(super) fn name(self, language: Language) -> String {
        let (word, page) = match language {
            Language::English => ("chapter", "README.md"),
            Language::Spanish => ("capítulo", "README.es.md"),
        };
        let number = self.folder.split('-').next().unwrap_or_default().trim_start_matches('0');
        format!("{word} {number}: {} (docs/course/{}/{page})", self.title.get(language), self.folder)
    }
}

pub(super) const CALLS: Chapter = Chapter::new(
    "01-call-by-call",
    "What does the server of the notes do, call by call?",
    "¿Qué hace el servidor de los apuntes, llamada por llamada?",
);
pub(super) const SECOND_CLIENT: Chapter =
    Chapter::new("02-second-client", "Where does the second client wait?", "¿Dónde espera el segundo cliente?");
pub(super) const MESSAGES: Chapter = Chapter::new("03-message", "What is a message?", "¿Qué es un mensaje?");
pub(super) const ONE_WAIT: Chapter =
    Chapter::new("06-one-wait", "How does one thread wait for everything?", "¿Cómo espera un solo hilo a todos?");
pub(super) const EDGES: Chapter = Chapter::new(
    "07-edges",
    "Why does my epoll server hang with large messages?",
    "¿Por qué mi servidor con epoll se cuelga con mensajes grandes?",
);
pub(super) const SENDALL: Chapter =
    Chapter::new("08-sendall", "What does `sendall` promise?", "¿Qué garantiza `sendall`?");
pub(super) const PAUSE: Chapter =
    Chapter::new("09-pause-and-resume", "How does a paused connection go on?", "¿Cómo continúa una conexión en pausa?");
pub(super) const ENDINGS: Chapter =
    Chapter::new("11-endings", "How does a connection end?", "¿Cómo termina una conexión?");
pub(super) const FAIRNESS: Chapter = Chapter::new("12-fairness", "Who is next?", "¿A quién le toca?");
pub(super) const DESCRIPTORS: Chapter =
    Chapter::new("13-descriptors", "What if there are no descriptors left?", "¿Y si se acaban los descriptores?");
pub(super) const STOPPING: Chapter = Chapter::new("14-stopping", "How does a loop stop?", "¿Cómo se detiene un bucle?");

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs;

    use super::super::all;
    use super::*;

    #[test]
    fn each_check_names_a_chapter_that_exists() {
        for check in all() {
            for language in [Language::English, Language::Spanish] {
                let name = check.read(language);
                let (heading, file) = name.strip_suffix(')').unwrap().rsplit_once(" (").unwrap();
                let page = fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
                let expected = heading.split_once(' ').unwrap().1.replacen(':', ".", 1);
                assert_eq!(page.lines().next(), Some(&format!("# {expected}")[..]), "{name}");
            }
        }
    }
}
