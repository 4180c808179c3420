//! Portuguese as written in Brazil.

use jiff::civil::{Date, Time};

use super::{
    Answered, Counted, Dates, Environment, EnvironmentWords, Headings, Labels, Questions, Texts,
    month, weekday,
};
use crate::{
    Destination,
    when::{Range, Units},
};

pub(super) static TEXTS: Texts = Texts {
    dates: Dates {
        day,
        since,
        within_a_day,
        over_days,
        units: Units {
            day: ("dia", "dias"),
            hour: ("hora", "horas"),
            minute: ("minuto", "minutos"),
            and: " e ",
        },
        zone_name: |zone, _| (zone == "America/Sao_Paulo").then_some("horário de Brasília"),
    },
    labels: Labels {
        local_time: "Horário local",
        utc: "UTC",
        estimate: "Duração estimada",
        window: "Duração da janela",
        environment: "Ambiente",
        program: "Programa",
        reference: "Referência",
        time_zone: "Fuso horário",
    },
    headings: Headings {
        when: "Quando",
        what: "O que muda e por quê",
        affected: "A atualização afeta você?",
        effect: "O que esperar",
        questions: "Perguntas e respostas",
    },
    questions: Questions {
        mandatory: Answered {
            question: "A atualização é obrigatória?",
            answer: "Sim. Suas instâncias precisam da infraestrutura de envio para enviar e-mails; \
                     por isso, não há exceções.",
        },
        customers: Answered {
            question: "Quais clientes são afetados?",
            answer: "Os ambientes de todos os clientes afetados são atualizados.",
        },
        scope: "Produtos incluídos:",
        downtime: Answered {
            question: "Qual é o tempo de interrupção previsto?",
            answer: |duration| {
                format!(
                    "O envio de e-mails deve ficar suspenso por cerca de {duration}. A duração \
                     depende do número de instâncias atualizadas em conjunto."
                )
            },
        },
        action: Answered {
            question: "Preciso fazer alguma coisa?",
            answer: "Não. Nós fazemos a atualização, de forma automática.",
        },
        test: Answered {
            question: "Preciso fazer testes?",
            answer: "Não, nenhum teste é esperado da sua parte. Se notar algum problema, entre em \
                     contato com o nosso atendimento ao cliente:",
        },
        change: Answered {
            question: "É possível mudar a data ou o horário?",
            answer: "Não. A mudança atrapalharia a atualização de outros clientes na mesma janela.",
        },
        further: Answered {
            question: "Com quem posso tirar outras dúvidas?",
            answer: "O nosso atendimento ao cliente está à sua disposição:",
        },
    },
    environment,
    colon: ":",

    subject: |day| format!("Atualização da infraestrutura de envio de e-mails em {day}"),
    changed: |subject| format!("Alteração: {subject}"),
    greeting: |name| match name {
        Some(name) => format!("Olá, {name}!"),
        None => "Olá!".to_owned(),
    },
    lead: |lead| {
        format!(
            "Em {}, {}, vamos atualizar o serviço que envia os e-mails {}. Durante a janela de \
             manutenção indicada abaixo, não será possível enviar e-mails. Você não precisa fazer \
             nada.",
            day(lead.date),
            weekday(lead.date, &WEEKDAYS),
            lead.yours
        )
    },
    replaces: "Esta mensagem substitui o aviso anterior sobre a mesma atualização.",
    what: |destination| match destination {
        Destination::Cloud => {
            "Estamos transferindo a nossa infraestrutura de envio, isto é, o serviço que entrega os \
             seus e-mails, dos nossos data centers para uma nuvem pública."
        }
        Destination::Unnamed => {
            "Estamos atualizando a nossa infraestrutura de envio, isto é, o serviço que entrega os \
             seus e-mails."
        }
    },
    why: "A nova infraestrutura oferece mais qualidade e confiabilidade, alta disponibilidade e \
          velocidade de envio ideal, e cresce de acordo com as suas necessidades.",
    affected: Counted {
        one: "Sim. Esta instância faz parte da atualização:",
        many: |count| format!("Sim. Estas {count} instâncias fazem parte da atualização:"),
    },
    clocks_change: |length| {
        format!("Há mudança de horário durante esta janela; mesmo assim, ela dura {length}.")
    },
    announced_ahead: |environments, period| {
        format!(
            "As atualizações de {environments} são anunciadas com pelo menos {period} de \
             antecedência."
        )
    },
    announced_on: |day| format!("Esta atualização foi anunciada em {day}."),
    stages: "Cronograma de todo o programa:",
    stage: |environments, since, period| match period {
        Some(period) => {
            format!("{environments}: {since}, com aviso pelo menos {period} antes")
        }
        None => format!("{environments}: {since}"),
    },
    no_sending: Counted {
        one: "Durante a janela, a instância indicada acima não pode enviar e-mails.",
        many: |_| {
            "Durante a janela, as instâncias indicadas acima não podem enviar e-mails.".to_owned()
        },
    },
    all_else_works: "Todas as outras funções do produto devem continuar disponíveis normalmente.",
    transparent: "Fora isso, a atualização é transparente: você não notará nenhuma diferença.",
    closing: "Atenciosamente,",
    calendar_attached: "Um evento para o seu calendário está anexado a esta mensagem.",
    automatic: "Esta mensagem foi gerada automaticamente.",
    calendar_summary: "Envio de e-mails suspenso: atualização da infraestrutura de envio",
};

const MONTHS: [&str; 12] = [
    "janeiro",
    "fevereiro",
    "março",
    "abril",
    "maio",
    "junho",
    "julho",
    "agosto",
    "setembro",
    "outubro",
    "novembro",
    "dezembro",
];

const WEEKDAYS: [&str; 7] = [
    "segunda-feira",
    "terça-feira",
    "quarta-feira",
    "quinta-feira",
    "sexta-feira",
    "sábado",
    "domingo",
];

/// Only the first of a month is an ordinal.
fn day(date: Date) -> String {
    let ordinal = if date.day() == 1 { "º" } else { "" };
    format!("{}{ordinal}\u{a0}de\u{a0}{} de {}", date.day(), month(date, &MONTHS), date.year())
}

fn long_day(date: Date) -> String {
    format!("{}, {}", weekday(date, &WEEKDAYS), day(date))
}

fn since(date: Date) -> String {
    match date.day() {
        1 => format!("a partir de {} de {}", month(date, &MONTHS), date.year()),
        _ => format!("a partir de {}", day(date)),
    }
}

/// `6h00`: without a zero before the hour.
fn clock(time: Time) -> String {
    let seconds = match time.second() {
        0 => String::new(),
        second => format!("min{second:02}s"),
    };
    format!("{}h{:02}{seconds}", time.hour(), time.minute())
}

/// One hour is singular, and so is hour zero: "à 0h30", "à 1h00", "às 2h00".
fn is_singular(time: Time) -> bool {
    time.hour() <= 1
}

fn at(time: Time) -> String {
    format!("{} {}", if is_singular(time) { "à" } else { "às" }, clock(time))
}

fn within_a_day(Range { from, to, .. }: &Range) -> String {
    format!(
        "{}, {} {}{} {}{}",
        long_day(from.date),
        if is_singular(from.time) { "da" } else { "das" },
        clock(from.time),
        from.zone,
        at(to.time),
        to.zone
    )
}

fn over_days(Range { from, to, .. }: &Range) -> String {
    format!(
        "de {}, {}{}, a {}, {}{}",
        long_day(from.date),
        at(from.time),
        from.zone,
        long_day(to.date),
        at(to.time),
        to.zone
    )
}

fn environment(environment: &Environment) -> EnvironmentWords {
    let known = |label, what: &str| {
        let yours = format!("do seu ambiente {what}");
        EnvironmentWords::new(label, &yours, &format!("ambientes {what}"))
    };
    match environment {
        Environment::Production => known("Produção", "de produção"),
        Environment::Staging => known("Homologação", "de homologação"),
        Environment::Development => known("Desenvolvimento", "de desenvolvimento"),
        Environment::Named(name) => known(name.as_str(), &format!("“{}”", name.as_str())),
        Environment::Unsaid => EnvironmentWords::new("", "das suas instâncias", "instâncias"),
    }
}
