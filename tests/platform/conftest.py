from database_fixtures import database, database_url, empty_database_url

__all__ = ["database", "database_url", "empty_database_url"]
