-- Run once, while a new volume is being filled: a role for orch and one for MLflow, each the owner of one database and no
-- more. The superuser has no password afterwards: it is reached by the server's own socket alone
-- (docker compose exec postgres psql -U postgres).
\getenv orch ORCH_ROLE_PASSWORD
\getenv mlflow MLFLOW_ROLE_PASSWORD
CREATE ROLE orch LOGIN PASSWORD :'orch';
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE DATABASE orch OWNER orch;
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE orch, mlflow, postgres FROM PUBLIC;
ALTER ROLE postgres PASSWORD NULL;
