//! The two languages of the grader's words.

/// A language of the grader's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is its name")]
pub enum Language {
    English,
    Spanish,
}

/// A sentence in both languages.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    en: &'static str,
    es: &'static str,
}

impl Words {
    pub(super) const fn new(en: &'static str, es: &'static str) -> Self {
        Self { en, es }
    }

    /// Returns the sentence in one language.
    #[must_use]
    pub const fn get(self, language: Language) -> &'static str {
        match language {
            Language::English => self.en,
            Language::Spanish => self.es,
        }
    }
}

/// The names of the levels, from level 1.
pub const LEVELS: [Words; 8] = [
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
    number: u8,
    title: Words,
}

impl Chapter {
    const fn new(number: u8, en: &'static str, es: &'static str) -> Self {
        Self { number, title: Words::new(en, es) }
    }

    /// Returns its number and title.
    pub(super) fn name(self, language: Language) -> String {
        let (number, title) = (self.number, self.title.get(language));
        match language {
            Language::English => format!("the course, chapter {number}: {title}"),
            Language::Spanish => format!("el curso, capítulo {number}: {title}"),
        }
    }
}

pub(super) const CALLS: Chapter = Chapter::new(
    1,
    "What does the server of the notes do, call by call?",
    "¿Qué hace el servidor de los apuntes, llamada por llamada?",
);
pub(super) const SECOND_CLIENT: Chapter =
    Chapter::new(2, "Where does the second client wait?", "¿Dónde espera el segundo cliente?");
pub(super) const MESSAGES: Chapter = Chapter::new(3, "What is a message?", "¿Qué es un mensaje?");
pub(super) const ONE_PLACE: Chapter = Chapter::new(6, "Wait in one place", "Esperar en un solo lugar");
pub(super) const EDGES: Chapter = Chapter::new(7, "Edges: three hangs", "Flancos: tres cuelgues");
pub(super) const SENDALL: Chapter = Chapter::new(8, "sendall, taken apart", "sendall, por dentro");
pub(super) const PAUSE: Chapter = Chapter::new(9, "Pause, and resume", "Pausar y reanudar");
pub(super) const ENDINGS: Chapter = Chapter::new(11, "How a connection ends", "Cómo termina una conexión");
pub(super) const FAIRNESS: Chapter = Chapter::new(12, "Fairness", "Equidad");
pub(super) const DESCRIPTORS: Chapter = Chapter::new(13, "No descriptors left", "Sin descriptores");
pub(super) const STOPPING: Chapter = Chapter::new(14, "Stopping", "Parar");
