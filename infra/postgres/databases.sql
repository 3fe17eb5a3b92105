-- Run once, on an empty volume; the database `prefect` is made by the image itself.
CREATE DATABASE mlflow;
