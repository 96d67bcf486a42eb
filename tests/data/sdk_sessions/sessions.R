# Each call of a session, and of a state token; prints what came of it.
library(policyclient)

status_of <- function(expression) {
  tryCatch(
    {
      expression
      "none"
    },
    error = function(error) substr(conditionMessage(error), 1, 3)
  )
}
count <- function(answer) round(answer$actions[[2]][[1]])
show <- function(...) cat(..., "\n")

client <- ApiClient$new(
  base_path = Sys.getenv("POLICY_SERVER_URL"),
  api_keys = c("access-token" = Sys.getenv("POLICY_SERVER_API_KEY"))
)
observation <- RawObservation$new(obs = as.list(rep(0.5, as.integer(Sys.getenv("WIDTH")))))
sessions <- SessionsApi$new(client)
policy <- PolicyApi$new(client)

session <- sessions$BeginSession(SessionStart$new(seed = 2^40))
show("begun", format(session$seed, digits = 17), session$steps)
id <- session$session_id
episode <- Episode$new(session)
for (i in 1:2) {
  answer <- episode$step(sessions$SessionPredictRaw, observation)
  show("step", count(answer))
}
again <- sessions$SessionPredictRawWithHttpInfo(id, 1, observation)
show("again", identical(again$content$actions, answer$actions), again$headers[["x-step"]])
show("shown", sessions$GetSession(id)$steps)
other <- sessions$SessionPredictDeterministicRaw
show("other", status_of(other(id, 1, observation)))
show("ahead", status_of(other(id, 100000, observation)))
session <- sessions$ResetSession(id, SessionStart$new(episode_id = "next"))
show("reset", format(session$seed, digits = 17), session$steps, session$episode_id)
episode <- Episode$new(session)
invisible(episode$step(sessions$SessionDistributionRaw, observation))
answer <- episode$step(other, observation, x_previous_reward = 0.25)
show("steps", count(answer), episode$steps)
invisible(sessions$EndSession(id))
show("ended", status_of(sessions$GetSession(id)))
show("unseeded", is.null(sessions$BeginSession()$seed))
state <- "new"
for (i in 1:3) {
  found <- policy$PredictRawWithHttpInfo(observation, x_state = state)
  state <- found$headers[["x-state"]]
  show("token", count(found$content))
}
changed <- paste0(substr(state, 1, nchar(state) - 4), "AAAA")
show("changed", status_of(policy$PredictRaw(observation, x_state = changed)))
