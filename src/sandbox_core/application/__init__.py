"""The use cases: ExecutionService (front), ExecutionSupervisor (back) and who may start one more."""
