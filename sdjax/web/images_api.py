from fastapi import APIRouter


def routes(service):
    return APIRouter()
